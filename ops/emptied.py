"""A program has changed pages of a file that it maps, and the kernel writes them back, while another opens the file to write it
anew: none of them may be in it afterwards.

usage: emptied.py DIRECTORY ROUNDS
"""
import mmap, os, sys, time

directory, rounds = sys.argv[1], int(sys.argv[2])
BYTES = 1 << 20
PAGE = 4096


def change_pages(path, changed):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), BYTES) as pages:
        for at in range(0, BYTES, PAGE):
            pages[at : at + 5] = b"older"
        os.write(changed, b".")
        try:
            pages.flush()
        except OSError:
            pass  # what lay there is gone


os.makedirs(directory, exist_ok=True)
path = os.path.join(directory, "f")
for n in range(rounds):
    with open(path, "wb") as file:
        file.write(b"a" * BYTES)
    told, changed = os.pipe()
    child = os.fork()
    if child == 0:
        change_pages(path, changed)
        os._exit(0)
    os.read(told, 1)
    # At another moment of writing back each time.
    time.sleep(n % 30 / 10_000)
    with open(path, "wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
    os.waitpid(child, 0)
    os.close(told), os.close(changed)
    with open(path, "rb") as file:
        found = file.read()
    if found != b"x":
        sys.exit(f"round {n}: {len(found)} bytes, which begin with {found[:9]!r}")
print(f"{rounds} times written anew")
