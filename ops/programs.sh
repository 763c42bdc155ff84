#!/bin/bash
# Runs real programs on a directory, whatever file system it is on, and says which of them pass.
#
#   programs.sh DIRECTORY [NAME...]     the names: see `all` below; all of them if none is given
#
# A program that is not installed is said to be missing, and counts as neither. REPO: a git repository to clone
# (one is made if there is none). BLOW: a command that is run while SQLite writes, in each round, before the program is
# killed; what it harms must be whole again in the next. OTHER: where the same file system is mounted once more, as on
# another machine; locks must hold between the two. CARGO_WHOLE=1: build REPO, not a small package. TOOLS: where
# `cargo install --root` has put pjdfstest and fsx, if not in ~/.cargo/bin. Needs root for postgres, which runs as the user
# `postgres`. What was made is removed, unless something fails.
set -uo pipefail

all="tar rsync git fio locks pages sqlite-rollback sqlite-wal sqlite-shared postgres cargo pjdfstest fsx"
[ $# -ge 1 ] || { echo "usage: $0 DIRECTORY [NAME...]"; exit 2; }
dir=$(realpath "$1") || exit 2
shift
names=${*:-$all}
work=$dir/programs.$$
logs=$(mktemp -d)
failed=0

has() { PATH=$PATH:${TOOLS:-$HOME/.cargo/bin} command -v "$1" > "$logs/which"; }

# A tree with many small files and some large ones, on another file system.
tree() {
    local tree=$logs/tree
    [ -d "$tree" ] && return
    mkdir -p "$tree"
    cp -r /usr/include "$tree/include"
    mkdir -p "$tree/large" "$tree/links"
    head -c 50000000 /dev/urandom > "$tree/large/a"
    head -c 7777777 /dev/urandom > "$tree/large/b"
    ln "$tree/large/b" "$tree/links/hard"
    ln -s ../large/a "$tree/links/soft"
    chmod 640 "$tree/large/b"
    touch -d '2001-02-03 04:05:06.789' "$tree/large/a"
}

run_tar() {
    tree
    tar -C "$logs" -cf "$work/tree.tar" tree && tar -C "$work" -xf "$work/tree.tar" || return 1
    diff -r --no-dereference "$logs/tree" "$work/tree" || return 1
    tar -C "$work" -df "$work/tree.tar"
}

run_rsync() {
    tree
    rsync -aH "$logs/tree/" "$work/synced/" || return 1
    local differs
    differs=$(rsync -aHnc --delete --itemize-changes "$logs/tree/" "$work/synced/") || return 1
    [ -z "$differs" ] || { echo "differs: $differs"; return 1; }
    # In place, into files that are there.
    head -c 1000 /dev/urandom | dd of="$logs/tree/large/a" bs=1 seek=3333333 conv=notrunc status=none
    rsync -aH --inplace --no-whole-file "$logs/tree/" "$work/synced/" || return 1
    cmp "$logs/tree/large/a" "$work/synced/large/a"
}

run_git() {
    local repo=${REPO:-}
    if [ -z "$repo" ]; then
        tree
        repo=$logs/repo
        cp -r "$logs/tree/include" "$repo"
        git -C "$repo" init -q && git -C "$repo" add -A || return 1
        git -C "$repo" -c user.name=a -c user.email=a@b commit -qm one || return 1
    fi
    git clone -q --no-local "$repo" "$work/clone" || return 1
    cd "$work/clone" || return 1
    git fsck --full --strict --no-dangling && git gc -q --aggressive --prune=now && git fsck --full --no-dangling || return 1
    [ -z "$(git status --porcelain)" ] || { git status | head; return 1; }
    for i in 1 2 3 4 5; do
        echo "$i" > a-file && git add a-file && git -c user.name=a -c user.email=a@b commit -qm "$i" || return 1
    done
    git repack -adq && git fsck --full --no-dangling && git checkout -q HEAD~3 && git checkout -q -
    local rc=$?
    cd "$logs"
    return $rc
}

run_fio() {
    fio --name=verify --verify_state_save=0 --directory="$work" --rw=randwrite --bsrange=512-128k --bs_unaligned=1 --size=64m --numjobs=2 \
        --ioengine=psync --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 --norandommap=0 --output-format=terse \
        --randseed=7 --group_reporting &&
    fio --name=mmap --verify_state_save=0 --directory="$work" --rw=randwrite --bs=4k --size=32m --ioengine=mmap --verify=crc32c --do_verify=1 \
        --verify_fatal=1 --output-format=terse
}

# Adds rows one by one, is killed, and looks for every row that it was told is there: several times.
sqlite() {
    local mode=$1 db=$work/$1.db told=$logs/$1.told
    sqlite3 "$db" "pragma journal_mode=$mode; create table t(id integer primary key, x blob);" || return 1
    : > "$told"
    told() { tail -n 1 "$told" | grep -E '^[0-9]+$' || echo 0; }
    # Until it has told of so many rows, or has ended.
    reach() { while kill -0 $pid 2> "$logs/null" && [ "$(told)" -lt "$1" ]; do sleep 0.05; done; }
    local round pid last=0
    for round in 1 2 3 4 5; do
        (
            echo ".bail on"
            echo ".timeout 60000"
            echo "pragma synchronous=full;"
            for ((i = last + 1; i < last + 20000; i++)); do
                echo "insert into t values($i, randomblob(abs(random() % 20000))); select $i;"
                [ $((i % 7)) -eq 0 ] && echo "update t set x = randomblob(3000) where id = abs(random() % $i);"
            done
        ) | sqlite3 "$db" >> "$told" 2> "$logs/$mode.err" &
        pid=$!
        local goal=$((last + 30 + RANDOM % 200))
        reach $goal
        if [ -n "${BLOW:-}" ]; then
            $BLOW > "$logs/blow" 2>&1 || { echo "round $round: $BLOW: $(cat "$logs/blow")"; return 1; }
            goal=$(($(told) + 30))
            reach $goal
        fi
        kill -9 $pid; wait $pid 2> "$logs/null"
        last=$(grep -E '^[0-9]+$' "$told" | tail -n 1)
        [ "$last" -ge $((goal - 1)) ] || { echo "it ended by itself at ${last:-0}:"; cat "$logs/$mode.err"; return 1; }
        [ "$(sqlite3 "$db" 'pragma integrity_check;')" = ok ] || { echo "round $round: integrity_check"; return 1; }
        local there
        there=$(sqlite3 "$db" "select count(*) from t where id <= $last;")
        [ "$there" = "$last" ] || { echo "round $round: told of $last rows, $there are there"; return 1; }
        last=$(sqlite3 "$db" 'select max(id) from t;')
    done
    echo "$last rows, killed 5 times"
}
run_sqlite-rollback() { sqlite delete; }
run_sqlite-wal() { sqlite wal; }

# The directory of the tests as it is seen from the other mount, once a file of it is.
other() {
    [ -n "${OTHER:-}" ] || { echo "$work"; return; }
    local seen=$OTHER/${work##*/} n
    for n in $(seq 100); do [ -e "$seen/$1" ] && break; sleep 0.1; done
    echo "$seen"
}

# Two machines write one database, in turn as its locks say.
run_sqlite-shared() {
    local db=shared.db dir pids=() pid
    sqlite3 "$work/$db" "pragma journal_mode=delete; create table t(dir text, n integer, x blob);" || return 1
    for dir in "$work" "$(other "$db")"; do
        for n in $(seq 100); do
            echo "insert into t values('$dir.$n', (select count(*) from t), randomblob(abs(random() % 5000)));"
        done | sqlite3 -bail -cmd '.timeout 120000' "$dir/$db" 2> "$logs/shared.${#pids[@]}" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || { cat "$logs"/shared.*; return 1; }; done
    [ "$(sqlite3 "$work/$db" 'pragma integrity_check;')" = ok ] || { echo integrity_check; return 1; }
    # Each saw all that was there before.
    [ "$(sqlite3 "$work/$db" 'select count(*), count(distinct n), max(n) from t;')" = '200|200|199' ] ||
        { sqlite3 "$work/$db" 'select count(*), count(distinct n), max(n) from t;'; return 1; }
    echo "200 rows of two, in turn"
}

# Ranges, and all kinds of locks, as fcntl(2) and flock(2) describe them.
run_locks() {
    : > "$work/f"
    python3 - "$work" "$(other f)" <<'END'
import errno, fcntl, os, signal, struct, sys, time

here, there = (os.path.join(d, "f") for d in sys.argv[1:])
OFD_SETLK = 37

def free(lock, *args):
    try:
        lock(*args)
        return True
    except OSError as e:
        assert e.errno in (errno.EAGAIN, errno.EACCES), e
        return False

def ranges(fd, kind, first, length):
    fcntl.lockf(fd, kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB, length, first)

def ofd(fd, kind, first, length):
    fcntl.fcntl(fd, OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, first, length, 0))

class Other:
    """Another process, which has the file open as it is seen there."""
    def __init__(self, first):
        (self.asks, a), (b, self.tells) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for inherited in (a, b, first): os.close(inherited)
            fd = os.open(there, os.O_RDWR)
            for line in os.fdopen(self.asks):
                name, *args = line.split()
                args = [int(x) for x in args]
                if name == "wait":
                    fcntl.lockf(fd, fcntl.LOCK_EX, args[1], args[0])
                    done = True
                elif name == "who":
                    kind, _, first, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(
                        fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, args[0], args[1], 0)))
                    done = kind != fcntl.F_UNLCK and f"{first}+{length}"
                elif name == "close":
                    os.close(os.open(there, os.O_RDONLY))
                    done = True
                else:
                    done = free({"ranges": ranges, "ofd": ofd, "flock": lambda fd, k: fcntl.flock(fd, k | fcntl.LOCK_NB)}[name], fd, *args)
                os.write(self.tells, f"{done}\n".encode())
            os._exit(0)
        os.close(self.asks); os.close(self.tells)
        self.asks, self.tells = os.fdopen(a, "w"), os.fdopen(b)
    def ask(self, *args):
        print(*args, file=self.asks, flush=True)
    def told(self):
        return self.tells.readline().strip()
    def can(self, *args):
        self.ask(*args)
        return self.told() == "True"

EX, SH, UN = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN
a = os.open(here, os.O_RDWR | os.O_CREAT)
other = Other(a)

ranges(a, EX, 10, 10)
assert not other.can("ranges", EX, 19, 1) and not other.can("ranges", SH, 0, 0)
assert other.can("ranges", EX, 0, 10) and other.can("ranges", EX, 20, 0), "what is beside it"
assert not free(ranges, a, SH, 100, 1)
# The middle of it, and half of it shared.
ranges(a, UN, 13, 2); ranges(a, SH, 15, 5)
assert other.can("ranges", EX, 13, 2) and other.can("ranges", SH, 15, 5)
assert not other.can("ranges", EX, 15, 1) and not other.can("ranges", SH, 12, 1)
other.ask("who", 0, 0); assert other.told() == "10+3", "who has it"
other.ask("who", 13, 2); assert other.told() == "False"
# Who closes any descriptor of it loses all; locks of open files stay.
assert not free(ranges, a, EX, 0, 10)
other.can("close"); assert free(ranges, a, EX, 0, 10)
ranges(a, UN, 0, 0)
ofd(a, fcntl.F_WRLCK, 0, 0)
os.close(os.open(here, os.O_RDONLY))
assert not other.can("ofd", fcntl.F_RDLCK, 5, 1) and not other.can("ranges", SH, 5, 1)
b = os.open(here, os.O_RDWR)
assert not free(ofd, b, fcntl.F_RDLCK, 5, 1), "of the same process, opened on its own"
os.close(a)
deadline = time.monotonic() + 10
while not other.can("ofd", fcntl.F_WRLCK, 0, 0): assert time.monotonic() < deadline, "a lock of a file that is closed"
other.can("ofd", fcntl.F_UNLCK, 0, 0)
# flock and fcntl know nothing of each other.
fcntl.flock(b, EX)
assert other.can("ranges", EX, 0, 0) and not other.can("flock", SH)
other.can("ranges", UN, 0, 0); fcntl.flock(b, UN); assert other.can("flock", EX)
# Who waits gets it; a signal ends the wait.
fcntl.lockf(b, EX, 1, 0)
other.ask("wait", 0, 1)
time.sleep(0.2); fcntl.lockf(b, UN, 1, 0); assert other.told() == "True"
class Alarm(Exception): pass
def alarm(*_): raise Alarm
signal.signal(signal.SIGALRM, alarm); signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    fcntl.lockf(b, EX, 1, 0)
    assert False, "it is locked"
except Alarm: pass
# Two that would wait for each other, on one machine.
if here == there:
    fcntl.lockf(b, EX, 1, 1); other.ask("wait", 1, 1); time.sleep(0.3)
    try:
        fcntl.lockf(b, EX, 1, 0)
        assert False, "nobody can go on"
    except OSError as e: assert e.errno == errno.EDEADLK, e
os.kill(other.pid, signal.SIGKILL); os.waitpid(other.pid, 0)
fcntl.lockf(b, EX, 0, 0)
print("ranges, sharing, closing, waiting, interrupting", "on one machine" if here == there else "between two")
END
}

# pgbench, the server killed in the middle, and again.
run_postgres() {
    local bin data=$work/pg
    bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
    mkdir "$data" && chown postgres "$data" && chmod 700 "$data" && chown postgres "$logs" || return 1
    chmod 755 "$work"
    as() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }
    local port=$((20000 + RANDOM % 10000))
    local sql=("$bin/psql" -h "$logs" -p $port -At postgres)
    cd "$logs" || return 1
    as "$bin/initdb" -D "$data" -A trust --data-checksums > "$logs/initdb" || { tail "$logs/initdb"; return 1; }
    start() {
        as "$bin/pg_ctl" -D "$data" -w -t 120 -l "$logs/pg.log" -o "-p $port -k $logs -c listen_addresses= -c shared_buffers=32MB \
            -c max_wal_size=64MB -c checkpoint_timeout=30s -c full_page_writes=on" start > "$logs/start" || { tail "$logs/pg.log"; return 1; }
    }
    start || return 1
    as "$bin/pgbench" -h "$logs" -p $port -i -q -s 4 postgres 2> "$logs/init" || { cat "$logs/init"; return 1; }
    local round told=0
    for round in 1 2 3; do
        as "$bin/pgbench" -h "$logs" -p $port -n -c 4 -j 2 -T 60 -P 1 -l --log-prefix="$logs/tx.$round" postgres > "$logs/bench.$round" 2>&1 &
        local bench=$!
        sleep 6
        # All of its processes, as a failing machine does.
        local postmaster
        postmaster=$(head -n 1 "$data/postmaster.pid")
        kill -9 "$postmaster" $(cat "/proc/$postmaster/task/$postmaster/children")
        wait $bench
        while [ -d "/proc/$postmaster" ]; do sleep 0.05; done
        told=$((told + $(cat "$logs/tx.$round".* | wc -l)))
        start || return 1
        local sums
        sums=$(as "${sql[@]}" -c "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
            and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history), (select count(*) from pgbench_history) >= $told")
        [ "$sums" = "t|t" ] || { echo "round $round: balances agree | nothing is lost of $told: $sums"; return 1; }
    done
    as "$bin/pg_amcheck" -h "$logs" -p $port --install-missing --heapallindexed postgres || return 1
    as "$bin/pg_ctl" -D "$data" -w -m fast stop > "$logs/stop" || return 1
    as "$bin/pg_checksums" -D "$data" --check || return 1
    echo "$told transactions told, killed 3 times"
}

# Builds a package with the target directory on the file system, and again: nothing is left to do.
run_cargo() {
    local source=${REPO:-}
    if [ -z "$source" ] || [ -z "${CARGO_WHOLE:-}" ]; then
        source=$work/hello
        # Not `cargo new`: if the mount lies within another workspace, that would put the package into it.
        mkdir -p "$source/src" "$source/tests" || return 1
        printf '[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2024"\n[workspace]\n' > "$source/Cargo.toml"
        echo 'fn main() { println!("Hello, world!"); }' > "$source/src/main.rs"
        echo '#[test] fn works() { assert!(std::path::Path::new("Cargo.toml").exists()) }' > "$source/tests/a.rs"
    fi
    cd "$source" || return 1
    CARGO_TARGET_DIR=$work/target cargo build -q || return 1
    CARGO_TARGET_DIR=$work/target cargo build 2>&1 | grep -v Finished && { echo "built again"; return 1; }
    [ -n "${CARGO_WHOLE:-}" ] || CARGO_TARGET_DIR=$work/target cargo test -q > "$logs/test" || { cat "$logs/test"; return 1; }
    cd "$logs"
}

run_pjdfstest() {
    id tests > "$logs/null" 2>&1 || echo 'tests:x:::A user of tests:/:/usr/sbin/nologin' | newusers || return 1
    cat > "$logs/pjdfstest.toml" << 'END'
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
stat_st_birthtime = {}
rename_ctime = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
END
    chmod 755 "$work" "$logs"
    $(cat "$logs/which") -c "$logs/pjdfstest.toml" -p "$work" -s "$logs" > "$logs/pjdfstest.log" 2>&1
    local rc=$?
    grep -E 'FAILED|failed$' "$logs/pjdfstest.log"
    tail -n 1 "$logs/pjdfstest.log"
    return $rc
}

run_fsx() {
    cat > "$logs/fsx.toml" << 'END'
flen = 4194304
[opsize]
max = 262144
min = 1
[weights]
close_open = 5
invalidate = 2
mapread = 10
mapwrite = 10
read = 10
write = 20
truncate = 5
fsync = 3
fdatasync = 3
posix_fallocate = 2
punch_hole = 3
sendfile = 3
posix_fadvise = 2
copy_file_range = 3
END
    local seed
    for seed in ${FSX_SEEDS:-1 2 3 $RANDOM}; do
        $(cat "$logs/which") -f "$logs/fsx.toml" -N "${FSX_STEPS:-1000}" -S "$seed" -P "$logs" "$work/fsx.$seed" > "$logs/fsx.log" 2>&1 ||
            { echo "seed $seed"; tail -n 30 "$logs/fsx.log"; return 1; }
    done
}

# Handles, mappings and listings of one machine, and changes by another, against a model.
run_pages() {
    local seed
    for seed in ${PAGES_SEEDS:-1 $RANDOM}; do
        mkdir "$work/$seed"
        python3 "$(dirname "$0")/pages.py" "$work/$seed" "$(other "$seed")/$seed" "$seed" "${PAGES_SECONDS:-8}" || return 1
    done
    python3 "$(dirname "$0")/emptied.py" "$work/emptied" "${EMPTIED_ROUNDS:-200}"
}

for name in $names; do
    program=${name%%-*}
    case $program in locks | pages) program=python3 ;; sqlite) program=sqlite3 ;; postgres) program=pg_ctlcluster ;; esac
    if ! has "$program"; then
        printf '%-16s missing\n' "$name"
        continue
    fi
    mkdir -p "$work"
    began=$(date +%s.%N)
    if (run_"$name") > "$logs/$name" 2>&1; then
        printf '%-16s ok      %6.1f s  %s\n' "$name" "$(echo "$(date +%s.%N) - $began" | bc)" "$(grep -v ';fio' "$logs/$name" | tail -n 1)"
        rm -rf "$work" || failed=1
    else
        printf '%-16s FAILED  %6.1f s  (%s, %s)\n' "$name" "$(echo "$(date +%s.%N) - $began" | bc)" "$work" "$logs/$name"
        tail -n 30 "$logs/$name"
        failed=1
    fi
done
[ $failed = 1 ] || rm -rf "$logs"
exit $failed
