"""Files as the programs of one machine see them: a random program that opens, reads, writes, maps, cuts, lists, links, renames
and deletes them, and another that changes them where the same file system is mounted once more while nobody has them open
here. After each step what is read, mapped or told must be what a model in memory says.

usage: pages.py DIRECTORY OTHER SEED SECONDS        both name the same directory, perhaps through two mounts
"""
import collections, ctypes, mmap, os, random, sys, time

here, there, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)

BYTES_MAX = 3_000_000
FILES_MAX = 10
# What another machine has changed may be told as it was for so long, unless the file is opened.
BELIEVED = 1.2
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16
Handle = collections.namedtuple("Handle", "fd reads appends")


class File:
    """What a file should be, and how it is open."""

    def __init__(self):
        self.data, self.mode, self.xattrs = bytearray(), 0o644, {}
        self.names, self.handles, self.maps = set(), [], []
        self.changed_there = 0.0

    def put(self, offset, data):
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset:offset + len(data)] = data

    def cut(self, length):
        if length < len(self.data):
            del self.data[length:]
        else:
            self.data.extend(bytes(length - len(self.data)))

    def path(self, directory=here):
        return os.path.join(directory, rng.choice(sorted(self.names)))

    def any(self, wanted=lambda handle: True):
        fits = [handle for handle in self.handles if wanted(handle)]
        return rng.choice(fits) if fits else None

    def close_all(self):
        def handles():
            while self.handles: os.close(self.handles.pop().fd)
        def maps():
            while self.maps: self.maps.pop().close()
        for close in rng.sample([handles, maps], 2): close()


files = {}     # by name
log = collections.deque(maxlen=40)


def check(what, found, wanted):
    if found == wanted: return
    print(f"seed {seed}: {what}: found {found!r:.200}, should be {wanted!r:.200}; the steps before:", *log, sep="\n")
    sys.exit(1)

def check_bytes(what, found, wanted):
    check(f"{what}: length", len(found), len(wanted))
    at = next((n for n in range(len(found)) if found[n] != wanted[n]), None) if found != wanted else None
    if at is not None: check(f"{what}: byte {at}", bytes(found[at:at + 8]), bytes(wanted[at:at + 8]))

def some_bytes(length):
    return rng.randbytes(length) if rng.random() < 0.5 else bytes([rng.randrange(1, 256)]) * length

def some_range(length):
    beyond = rng.choice([0, 0, 1, 100, 4096, 70_000])
    offset = rng.randrange(min(length + beyond, BYTES_MAX) + 1)
    if rng.random() < 0.4: offset &= ~4095
    return offset, rng.choice([1, 10, 100, 4096, 5000, 8192, 65_536, 200_000])

def some_length(length):
    return rng.choice([0, length // 2, max(0, length - 1), length + 1, length + 5000, length & ~4095])

def is_named(file): return bool(file.names)


# --- steps: each is told a file, and returns nothing if it does not fit it ---------------------------------------------

def create(_, n):
    if len(files) >= FILES_MAX: return
    file, name, reads = File(), f"n{n}", rng.random() < 0.5
    flags = os.O_CREAT | os.O_EXCL | (os.O_RDWR if reads else os.O_WRONLY)
    file.handles.append(Handle(os.open(f"{here}/{name}", flags, file.mode), reads, False))
    file.names.add(name)
    files[name] = file

def open_(file, _):
    if not is_named(file) or len(file.handles) >= 4: return
    access, appends = rng.choice([os.O_RDWR, os.O_RDWR, os.O_WRONLY]), rng.random() < 0.2
    cuts = rng.random() < 0.05
    flags = access | (os.O_APPEND if appends else 0) | (os.O_TRUNC if cuts else 0)
    file.handles.append(Handle(os.open(file.path(), flags), access == os.O_RDWR, appends))
    if cuts: file.cut(0)

def close(file, _):
    if file.handles: os.close(file.handles.pop(rng.randrange(len(file.handles))).fd)

def read(file, _):
    handle = file.any(lambda handle: handle.reads)
    if not handle: return
    offset, length = some_range(len(file.data))
    check_bytes(f"read of {length} at {offset}", os.pread(handle.fd, length, offset), file.data[offset:offset + length])

def read_anew(file, _):
    if not is_named(file): return
    fd = os.open(file.path(), os.O_RDONLY)
    offset, length = some_range(len(file.data))
    check_bytes(f"read anew of {length} at {offset}", os.pread(fd, length, offset), file.data[offset:offset + length])
    os.close(fd)

def write(file, _):
    handle = file.any()
    if not handle or len(file.data) > BYTES_MAX: return
    offset, length = some_range(len(file.data))
    data = some_bytes(length)
    log.append(f"    {length} at {offset} of {len(file.data)}{', appended' if handle.appends else ''}")
    if handle.appends:
        file.put(len(file.data), data[:os.write(handle.fd, data)])
    else:
        file.put(offset, data[:os.pwrite(handle.fd, data, offset)])

def cut(file, _):
    length, handle = some_length(len(file.data)), file.any()
    log.append(f"    {len(file.data)} to {length}")
    if handle and rng.random() < 0.6: os.ftruncate(handle.fd, length)
    elif is_named(file): os.truncate(file.path(), length)
    else: return
    file.cut(length)

def map_(file, _):
    handle = file.any(lambda handle: handle.reads)
    if handle and file.data and len(file.maps) < 3: file.maps.append(mmap.mmap(handle.fd, len(file.data)))

def in_map(file):
    mapped = rng.choice(file.maps)
    end = min(len(mapped), len(file.data))
    offset = rng.randrange(end)
    return mapped, offset, min(end - offset, rng.choice([1, 100, 4096, 9000, 60_000]))

def read_map(file, _):
    if not file.maps or not file.data: return
    mapped, offset, length = in_map(file)
    check_bytes(f"mapped {length} at {offset}", mapped[offset:offset + length], file.data[offset:offset + length])

def write_map(file, _):
    if not file.maps or not file.data: return
    mapped, offset, length = in_map(file)
    data = some_bytes(length)
    log.append(f"    {length} at {offset} of {len(file.data)}")
    mapped[offset:offset + length] = data
    file.put(offset, data)

def sync_map(file, _):
    if file.maps and file.data: rng.choice(file.maps).flush()

def unmap(file, _):
    if file.maps: file.maps.pop(rng.randrange(len(file.maps))).close()

def sync(file, _):
    handle = file.any()
    if handle: os.fsync(handle.fd)

def allocate(file, _):
    handle = file.any()
    if not handle or not file.data: return
    offset, length = rng.randrange(len(file.data)), rng.choice([1, 4096, 10_000])
    keep = rng.choice([0, FALLOC_FL_KEEP_SIZE])
    mode = rng.choice([keep, keep | FALLOC_FL_ZERO_RANGE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE])
    log.append(f"    {length} at {offset} of {len(file.data)}, mode {mode}")
    done = libc.fallocate(handle.fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
    check("fallocate", (done, ctypes.get_errno() if done else 0), (0, 0))
    if mode & ~FALLOC_FL_KEEP_SIZE:
        end = min(offset + length, len(file.data))
        file.put(offset, bytes(end - offset))
    if not mode & FALLOC_FL_KEEP_SIZE: file.cut(max(len(file.data), offset + length))

def copy(file, _):
    other = rng.choice(list(files.values()))
    source, target = file.any(lambda handle: handle.reads), other.any(lambda handle: not handle.appends)
    if other is file or not source or not target or len(other.data) > BYTES_MAX: return
    os.fstat(source.fd)     # else it may end where the file ended a second ago (docs/mount.md)
    offset, length = some_range(len(file.data))
    to = rng.randrange(len(other.data) + 1)
    log.append(f"    {length} at {offset} of {len(file.data)} to {to} of {len(other.data)}")
    copied = os.copy_file_range(source.fd, target.fd, length, offset, to)
    check("nothing copied", copied > 0, offset < len(file.data))
    if copied: other.put(to, file.data[offset:offset + copied])

def list_(*_): check("names", sorted(os.listdir(here)), sorted(files))

def attributes(file, found):
    is_old = time.time() - file.changed_there < BELIEVED
    wanted = (len(file.data), file.mode, len(file.names))
    check("attributes", (wanted[0] if is_old else found.st_size, found.st_mode & 0o777, found.st_nlink), wanted)

def list_all(*_):
    for entry in os.scandir(here): attributes(files[entry.name], entry.stat())

def stat(file, _):
    handle = file.any()
    if handle and rng.random() < 0.5: attributes(file, os.fstat(handle.fd))
    elif is_named(file): attributes(file, os.stat(file.path()))

def rename(file, n):
    if not is_named(file): return
    name = rng.choice(sorted(file.names))
    to = rng.choice(sorted(files)) if rng.random() < 0.2 else f"n{n}"
    if to in file.names: return
    os.rename(f"{here}/{name}", f"{here}/{to}")
    if to in files: forget(to)
    del files[name]
    file.names.remove(name)
    file.names.add(to)
    files[to] = file

def link(file, n):
    if not is_named(file) or len(files) >= FILES_MAX: return
    os.link(file.path(), f"{here}/n{n}")
    file.names.add(f"n{n}")
    files[f"n{n}"] = file

def unlink(file, _):
    if not is_named(file) or rng.random() < 0.6: return
    name = rng.choice(sorted(file.names))
    os.unlink(f"{here}/{name}")
    forget(name)
    check(f"{name} is there", os.path.exists(f"{here}/{name}"), False)

def forget(name):
    file = files.pop(name)
    file.names.remove(name)
    if not file.names: nameless.append(file)

def change_mode(file, _):
    if not is_named(file): return
    file.mode = rng.choice([0o600, 0o644, 0o755])
    os.chmod(file.path(), file.mode)

def set_xattr(file, _):
    if not is_named(file): return
    name, value = f"user.{rng.randrange(3)}", some_bytes(rng.randrange(1, 50))
    if name in file.xattrs and rng.random() < 0.4:
        os.removexattr(file.path(), name)
        del file.xattrs[name]
    else:
        os.setxattr(file.path(), name, value)
        file.xattrs[name] = value

def get_xattrs(file, _):
    if not is_named(file): return
    path = file.path()
    found = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}
    check("extended attributes", found, file.xattrs)

def drop_caches(*_):
    if os.access("/proc/sys/vm/drop_caches", os.W_OK) and rng.random() < 0.3:
        with open("/proc/sys/vm/drop_caches", "w") as f: f.write(rng.choice("123"))

def open_there(file, flags):
    """Opens it through the other mount, where a name may be a second old."""
    path, end = file.path(there), time.time() + 3
    while True:
        try:
            fd = os.open(path, flags)
            if os.fstat(fd).st_ino == os.stat(file.path()).st_ino: return fd
            os.close(fd)
        except FileNotFoundError: pass
        check("its name is not seen there", time.time() < end, True)
        time.sleep(0.02)

def read_there(file, _):
    if not is_named(file): return
    file.close_all()
    with open(open_there(file, os.O_RDONLY), "rb") as f: check_bytes("read there", f.read(), file.data)

def change_there(file, _):
    if not is_named(file): return
    file.close_all()
    appends = rng.random() < 0.3
    fd = open_there(file, os.O_RDWR | (os.O_APPEND if appends else 0))
    for _ in range(rng.randrange(1, 4)):
        if rng.random() < 0.2:
            length = some_length(len(file.data))
            log.append(f"    {len(file.data)} to {length}")
            os.ftruncate(fd, length)
            file.cut(length)
        elif len(file.data) < BYTES_MAX:
            offset, length = some_range(len(file.data))
            data = some_bytes(length)
            log.append(f"    {length} at {offset} of {len(file.data)}{', appended' if appends else ''}")
            if appends: file.put(len(file.data), data[:os.write(fd, data)])
            else: file.put(offset, data[:os.pwrite(fd, data, offset)])
    os.close(fd)
    file.changed_there = time.time()


STEPS = {create: 1, open_: 3, close: 1, read: 2, read_anew: 1, write: 5, cut: 1, map_: 1, read_map: 2, write_map: 5, sync_map: 1,
         unmap: 1, sync: 1, allocate: 2, copy: 1, list_: 2, list_all: 1, stat: 2, rename: 1, link: 1, unlink: 1, change_mode: 1,
         set_xattr: 1, get_xattrs: 2, drop_caches: 1, read_there: 1, change_there: 3}
nameless = []
steps, end = 0, time.time() + seconds
while time.time() < end:
    steps += 1
    step = rng.choices(list(STEPS), STEPS.values())[0] if files else create
    nameless = [file for file in nameless if file.handles or file.maps]
    file = rng.choice(list(files.values()) + nameless) if files else None
    log.append(f"{step.__name__.strip('_')} {sorted(file.names) if file else ''}")
    step(file, steps)
for file in list(files.values()): read_there(file, steps)
print(f"{steps} steps, seed {seed}")
