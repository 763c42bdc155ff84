//! A cluster of real processes: files in and out, bad
//! configurations, what servers and clients do for each other.

mod running;

use client::{Client, Config};
use common::wire::frame::{HEADER_BYTES, Header, Kind};
use common::wire::{self, Caller, Hello};
use common::{ClusterId, Code, StoreId};
use ops::cluster::{Cluster, Spec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use running::{Running, cairn};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

impl Running {
    /// Where a test may keep files; gone with it.
    fn scratch(&self) -> &Path {
        self.cluster.dir().parent().expect("it was made below one")
    }

    /// Has a server stop in order.
    fn stop(&mut self, name: &str) {
        ops::cluster::signal(self.cluster.pid(name).unwrap(), "TERM").unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while self.cluster.exited().as_deref() != Some(name) {
            assert!(Instant::now() < end, "{name} does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The bytes that a server says it has copied as a new member.
    fn copied(&self, name: &str, end: Instant) -> usize {
        loop {
            let log = std::fs::read_to_string(self.cluster.dir().join(name).join("log.txt")).unwrap();
            if let Some(line) = log.lines().find(|l| l.contains("copied as a new member")) {
                let bytes = line.split("bytes=").nth(1).unwrap().split(' ').next().unwrap();
                return bytes.parse().unwrap();
            }
            assert!(Instant::now() < end, "no copy is in the log of {name}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// A file: path, content, mode, modification time.
type Found = (PathBuf, Option<Vec<u8>>, u32, i64, i64);

/// Everything below a directory.
fn tree(root: &Path) -> Vec<Found> {
    use std::os::unix::fs::MetadataExt;
    let mut all = vec![];
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let content = match () {
                _ if meta.is_dir() => None,
                _ if meta.is_symlink() => {
                    Some(std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
                }
                _ => Some(std::fs::read(&path).unwrap()),
            };
            let times = if meta.is_symlink() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
            all.push((
                path.strip_prefix(root).unwrap().to_path_buf(),
                content,
                meta.mode(),
                times.0,
                times.1,
            ));
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    all.sort();
    all
}

#[test]
fn trees_of_strange_names_come_back_as_they_went() {
    let c = Running::start(3, 4);
    let from = c.scratch().join("from");
    std::fs::create_dir(&from).unwrap();
    let name = |bytes: &[u8]| from.join(std::ffi::OsStr::from_bytes(bytes));
    std::fs::write(name(b"empty"), b"").unwrap();
    std::fs::write(name(b"one"), b"1").unwrap();
    std::fs::write(name(b"with space"), random(70_000, 1)).unwrap();
    std::fs::write(name(b"line\nbreak"), random(4096, 2)).unwrap();
    std::fs::write(name("größe-☃".as_bytes()), random(1_048_577, 3)).unwrap();
    std::fs::write(name(b"no-utf8-\xff\xfe"), random(100, 4)).unwrap();
    std::fs::write(name(&[b'x'; 255]), random(300_000, 5)).unwrap();
    std::os::unix::fs::symlink("one", name(b"link")).unwrap();
    let deep = (0..40).fold(from.clone(), |p, i| p.join(format!("d{i}")));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), b"deep").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(name(b"one"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    std::fs::File::open(name(b"one")).unwrap().set_modified(time).unwrap();
    c.ok(&["put".as_ref(), "-r".as_ref(), from.as_os_str(), "/t".as_ref()]);
    let to = c.scratch().join("to");
    c.ok(&["get".as_ref(), "-r".as_ref(), "/t".as_ref(), to.as_os_str()]);
    assert_eq!(tree(&from), tree(&to));
    // All chunks have three replicas on three racks.
    let shown = c.ok(&["--json", "admin", "chunks", "/t/größe-☃"]);
    for line in String::from_utf8(shown).unwrap().lines() {
        let chunk: serde_json::Value = serde_json::from_str(line).unwrap();
        let mut racks: Vec<String> =
            chunk["replicas"].as_array().unwrap().iter().map(|r| r["rack"].to_string()).collect();
        racks.sort();
        racks.dedup();
        assert_eq!(racks.len(), 3, "{line}");
    }
}

#[test]
fn a_chunk_is_explained_and_maintenance_says_whether_it_is_safe() {
    let mut c = Running::start(1, 3);
    c.ok(&["append", "/log", "one"]);
    let line = String::from_utf8(c.ok(&["--json", "admin", "chunks", "/log"])).unwrap();
    let chunk: serde_json::Value = serde_json::from_str(&line).unwrap();
    let handle = chunk["handle"].as_str().unwrap().to_owned();
    let explain = |c: &Running| -> serde_json::Value {
        serde_json::from_slice(&c.ok(&["--json", "admin", "explain", &handle])).unwrap()
    };
    let story = explain(&c);
    assert_eq!((&story["path"], &story["want"]), (&"/log".into(), &3.into()));
    assert_eq!(story["replicas"].as_array().unwrap().len(), 3);
    c.ok(&["snapshot", "create", "/", "s"]);
    c.ok(&["append", "/log", "two"]);
    let fork = explain(&c)["forks"][0]["handle"].as_str().unwrap().to_owned();
    let said = String::from_utf8(c.ok(&["admin", "explain", &fork])).unwrap();
    assert!(said.contains(&format!("what {handle} of /log held")), "{said}");
    assert!(!c.cairn(&["admin", "explain", "ch_99999"]).status.success());

    let safe = |c: &Running, args: &[&str]| -> serde_json::Value {
        let all = [&["--json", "admin", "maintenance"], args].concat();
        serde_json::from_slice(&c.ok(&all)).unwrap()
    };
    let first = safe(&c, &["cs1", "--minutes", "5"]);
    assert_eq!((&first["safe"], &first["chunks"]), (&true.into(), &2.into()));
    assert!((200_000..=300_000).contains(&first["left_ms"].as_u64().unwrap()), "{first}");
    c.stop("cs2");
    let end = Instant::now() + Duration::from_secs(20);
    while safe(&c, &[])["at_risk"] != 2 {
        assert!(Instant::now() < end, "{}", safe(&c, &[]));
        std::thread::sleep(Duration::from_millis(50));
    }
    c.ok(&["admin", "maintenance", "cs1", "--end"]);
    assert!(c.ok(&["--json", "admin", "maintenance"]).is_empty());
    assert!(!c.cairn(&["admin", "maintenance", "cs9"]).status.success());
}

#[test]
fn a_quota_holds_for_all_that_is_below_and_du_is_counted_as_it_changes() {
    let c = Running::start(1, 3);
    let from = c.scratch().join("from");
    std::fs::write(&from, random(3 << 20, 1)).unwrap();
    c.ok(&["mkdir", "-p", "/q/sub"]);
    c.ok(&["admin", "quota", "/q", "--bytes", "8MiB"]);
    c.ok(&["admin", "quota", "/q", "--entries", "4"]);
    let put = |to: &str| c.cairn(&["put".as_ref(), from.as_os_str(), to.as_ref()]);
    assert!(put("/q/1").status.success() && put("/q/sub/2").status.success());
    let du =
        |path: &str| -> serde_json::Value { serde_json::from_slice(&c.ok(&["--json", "du", path])).unwrap() };
    assert_eq!((&du("/q")["bytes"], &du("/q")["entries"]), (&(6 << 20).into(), &3.into()));
    assert_eq!(du("/q/sub")["quota"]["bytes"], serde_json::Value::Null);
    let refused = put("/q/sub/3");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains(Code::QuotaExceeded.text()), "{said}");
    assert_eq!(du("/q")["entries"], 3, "nothing of it is there");
    assert!(put("/q/sub/2").status.success(), "in place of one of the same size");
    c.ok(&["touch", "/q/empty"]);
    assert!(!c.cairn(&["mkdir", "/q/more"]).status.success(), "four entries");
    assert!(put("/3").status.success());
    assert!(!c.cairn(&["mv", "/3", "/q/3"]).status.success());
    c.ok(&["rm", "-r", "/q/sub"]);
    assert_eq!((&du("/q")["bytes"], &du("/q")["entries"]), (&(3 << 20).into(), &2.into()));
    c.ok(&["mv", "/3", "/q/3"]);
    assert!(!c.cairn(&["undelete", "/q/sub"]).status.success());
    c.ok(&["admin", "quota", "/q", "--remove"]);
    c.ok(&["undelete", "/q/sub"]);
    assert_eq!(du("/q")["bytes"], 9 << 20);
}

/// Of three members two are gone for good: somebody says so, and the chunk goes on. What only one store
/// had is lost, and every command says that.
#[test]
fn stores_that_never_come_back_are_given_up() {
    let mut c = Running::start(1, 5);
    c.ok(&["mkdir", "/single"]);
    c.ok(&["admin", "policy", "/single", "--replication", "1"]);
    c.ok(&["append", "/single/f", "alone"]);
    c.ok(&["append", "/log", "one"]);
    let members = |c: &Running, path: &str| -> Vec<u64> {
        let chunk: serde_json::Value =
            serde_json::from_slice(&c.ok(&["--json", "admin", "chunks", path])).unwrap();
        chunk["replicas"].as_array().unwrap().iter().map(|r| r["store"].as_u64().unwrap()).collect()
    };
    let loss = |c: &Running, store: u64, more: &[&str]| -> serde_json::Value {
        let name = format!("s{store}");
        let all = [&["--json", "admin", "accept-loss", &name[..]], more].concat();
        serde_json::from_slice(&c.ok(&all)).unwrap()
    };
    let name_of = |c: &Running, store: u64| {
        let has = |name: &String| c.cluster.store(name).unwrap() == Some(StoreId(store as u32));
        (1..=5).map(|n| format!("cs{n}")).find(has).unwrap()
    };
    let end = Instant::now() + Duration::from_secs(60);
    let lose = |c: &mut Running, store: u64| {
        let name = name_of(c, store);
        c.cluster.kill(&name).unwrap();
        while loss(c, store, &[])["up"] == true {
            assert!(Instant::now() < end, "{name} stays up");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let single = members(&c, "/single/f")[0];
    let victims: Vec<u64> = members(&c, "/log").into_iter().filter(|s| *s != single).take(2).collect();
    let refused = c.cairn(&["admin", "accept-loss", &victims[0].to_string(), "--yes"]);
    assert!(!refused.status.success(), "it is in service");
    victims.iter().for_each(|v| lose(&mut c, *v));
    assert_eq!(loss(&c, victims[0], &["--yes"])["single"], 0);
    let second = loss(&c, victims[1], &["--yes"]);
    assert_eq!((&second["single"], &second["lost"]), (&1.into(), &0.into()), "{second}");
    c.ok(&["append", "/log", "two"]);
    c.ok(&["admin", "repair", "--wait"]);
    assert_eq!(c.ok(&["cat", "/log"]), b"onetwo");
    let now = members(&c, "/log");
    assert!(now.len() == 3 && victims.iter().all(|v| !now.contains(v)), "{now:?}");

    lose(&mut c, single);
    let lost = loss(&c, single, &["--yes"]);
    assert_eq!((&lost["lost"], &lost["lost_chunks"][0]["path"]), (&1.into(), &"/single/f".into()));
    let began = Instant::now();
    let read = c.cairn(&["cat", "/single/f"]);
    let said = String::from_utf8(read.stderr).unwrap();
    assert!(!read.status.success() && said.contains(Code::Lost.text()), "{said}");
    assert!(began.elapsed() < Duration::from_secs(15), "whoever reads it waits in vain");
    c.ok(&["rm", "/single/f"]);

    // Whoever comes back nevertheless is told, and serves nothing.
    let name = name_of(&c, victims[0]);
    c.cluster.start(&name).unwrap();
    while c.cluster.exited().as_deref() != Some(&name) {
        assert!(Instant::now() < end, "{name} goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    let log = std::fs::read_to_string(c.cluster.dir().join(&name).join("log.txt")).unwrap();
    assert!(log.contains(Code::GivenUp.text()), "{log}");
}

#[test]
fn a_snapshot_stays_as_it_was_through_writes_and_restarts() {
    let mut c = Running::start(3, 4);
    let from = c.scratch().join("from");
    std::fs::create_dir_all(from.join("sub")).unwrap();
    std::fs::write(from.join("sub/large"), random(3_000_000, 1)).unwrap();
    std::fs::write(from.join("small"), b"small").unwrap();
    c.ok(&["put".as_ref(), "-r".as_ref(), from.as_os_str(), "/t".as_ref()]);
    c.ok(&["append", "/t/log", "one\n"]);
    c.ok(&["append", "/t/open", "one\n"]);
    let taken: serde_json::Value =
        serde_json::from_slice(&c.ok(&["--json", "snapshot", "create", "/t", "s"])).unwrap();
    assert_eq!(taken["seen_as"], "/t/.snapshot/s");
    let before = c.scratch().join("before");
    c.ok(&["get".as_ref(), "-r".as_ref(), "/t/.snapshot/s".as_ref(), before.as_os_str()]);
    assert_eq!(std::fs::read(before.join("log")).unwrap(), b"one\n");
    // Everything changes: appended to, written over in place and as a whole, cut, moved, deleted.
    c.ok(&["append", "/t/log", "two\n"]);
    c.runtime.block_on(c.client.write_at(b"/t/sub/large", 1_000_000, &random(600_000, 2))).unwrap();
    c.ok(&["truncate", "/t/small", "2"]);
    c.ok(&["truncate", "/t/open", "2"]);
    c.ok(&["mv", "/t/sub", "/elsewhere"]);
    c.ok(&["rm", "/t/small"]);
    c.ok(&["admin", "empty-trash"]);
    let again = |c: &Running, name: &str| {
        let to = c.scratch().join(name);
        c.ok(&["get".as_ref(), "-r".as_ref(), "/t/.snapshot/s".as_ref(), to.as_os_str()]);
        assert_eq!(tree(&before), tree(&to), "{name}");
    };
    again(&c, "after");
    assert_eq!(c.ok(&["cat", "/t/log"]), b"one\ntwo\n");
    // Of a file whose last chunk was forked the masters know what it is now: it is open, and can be cut.
    let log = c.runtime.block_on(c.client.lookup(b"/t/log")).unwrap();
    assert!(log.open.is_some(), "{log:?}");
    c.ok(&["truncate", "/t/log", "5"]);
    assert_eq!(c.ok(&["cat", "/t/log"]), b"one\nt");
    again(&c, "cut");
    // Masters and stores find all of it again.
    for name in c.cluster.names().unwrap() {
        c.cluster.kill(&name).unwrap();
    }
    c.cluster.start_all().unwrap();
    c.client = c.runtime.block_on(c.cluster.healthy()).unwrap();
    again(&c, "restarted");
    let refused = c.cairn(&["rm", "-r", "/t"]);
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("cairn snapshot delete"), "{said}");
    c.ok(&["snapshot", "delete", "/t", "s"]);
    assert!(c.ok(&["--json", "snapshot", "list"]).is_empty());
    c.ok(&["rm", "-r", "/t", "/elsewhere"]);
    c.ok(&["admin", "empty-trash"]);
    let end = Instant::now() + Duration::from_secs(30);
    while c.runtime.block_on(c.client.stores()).unwrap().iter().any(|s| s.used > 0) {
        assert!(Instant::now() < end, "space does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn commands_do_what_their_help_says() {
    let c = Running::start(1, 3);
    c.ok(&["mkdir", "-p", "/a/b"]);
    assert!(!c.cairn(&["mkdir", "/a"]).status.success());
    c.ok(&["append", "/a/log", "one\n"]);
    c.ok(&["append", "/a/log", "two\n"]);
    assert_eq!(c.ok(&["cat", "/a/log"]), b"one\ntwo\n");
    c.ok(&["truncate", "/a/log", "6"]);
    c.ok(&["append", "/a/log", "!\n"]);
    assert_eq!(c.ok(&["cat", "/a/log"]), b"one\ntw!\n");
    c.ok(&["truncate", "/a/log", "10"]);
    assert_eq!(c.ok(&["cat", "/a/log"]), b"one\ntw!\n\0\0");
    c.ok(&["mv", "/a/log", "/a/b"]);
    assert_eq!(c.ok(&["ls", "/a/b"]), b"log\n");
    let refused = c.cairn(&["rm", "/a"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("-r"));
    c.ok(&["rm", "-r", "/a"]);
    assert_eq!(c.cairn(&["stat", "/a"]).status.code(), Some(1));
    c.ok(&["undelete", "/a", "/back"]);
    assert_eq!(c.ok(&["cat", "/back/b/log"]).len(), 10);
    c.ok(&["touch", "/new"]);
    let stat: serde_json::Value = serde_json::from_slice(&c.ok(&["--json", "stat", "/new"])).unwrap();
    assert_eq!((&stat["kind"], &stat["length"]), (&"file".into(), &0.into()));
    assert!(String::from_utf8(c.ok(&["tree", "/"])).unwrap().contains("log"));
    assert_eq!(c.cairn(&["no-such-command"]).status.code(), Some(2));
}

#[test]
fn positional_writes_and_appends_agree_with_a_model() {
    let c = Running::start(1, 3);
    c.runtime.block_on(async {
        let mut rng = StdRng::seed_from_u64(8);
        let mut model: Vec<u8> = vec![];
        c.client.create_with(b"/f", b"start").await.unwrap();
        model.extend_from_slice(b"start");
        for i in 0..60 {
            let data = random(rng.random_range(1..200_000), i);
            if rng.random_bool(0.5) {
                let at = rng.random_range(0..=model.len());
                c.client.write_at(b"/f", at as u64, &data).await.unwrap();
                if model.len() < at + data.len() {
                    model.resize(at + data.len(), 0);
                }
                model[at..at + data.len()].copy_from_slice(&data);
            } else {
                let mut appender = c.client.appender(b"/f").await.unwrap();
                let at = appender.append(&data).await.unwrap();
                assert_eq!(at, model.len() as u64);
                model.extend_from_slice(&data);
            }
            let file = c.client.open(b"/f").await.unwrap();
            assert_eq!(file.len(), model.len() as u64);
            let at = rng.random_range(0..model.len());
            let len = rng.random_range(0..=model.len() - at);
            assert!(file.read_at(at as u64, len as u64).await.unwrap() == model[at..at + len]);
        }
    });
}

/// Who opens a file that it has looked at before sees what another has done to it meanwhile, whatever that is.
#[test]
fn what_is_looked_at_again_is_as_it_is_then() {
    let mut c = Running::start(1, 3);
    let config = Config::new(c.cluster.client_file().unwrap().masters);
    let reader = c.runtime.block_on(Client::connect(config)).unwrap();
    let looked = |c: &Running| {
        let seen = c.runtime.block_on(reader.see(b"/f")).unwrap();
        assert!(seen.attr.open.is_some(), "its last chunk is open: its primary is asked");
        seen.attr.file
    };
    let expect = |c: &Running, file, bytes: &[u8]| {
        let read = async {
            let seen = reader.exactly(reader.look_again(&common::wire::path::at(file), file).await?).await?;
            let length = seen.attr.length;
            let parts = client::OpenFile::new(&reader, &seen).read(0, 1 << 20).await?;
            client::Result::Ok((length, parts.concat()))
        };
        let (length, read) = c.runtime.block_on(read).unwrap();
        assert_eq!((length, &read[..]), (bytes.len() as u64, bytes));
    };
    let append = |c: &Running, record: &[u8]| {
        let appended = async { c.client.appender(b"/f").await?.append(record).await };
        c.runtime.block_on(appended).unwrap();
    };
    append(&c, b"first");
    let file = looked(&c);
    expect(&c, file, b"first");
    looked(&c);
    append(&c, b" second");
    expect(&c, file, b"first second");
    looked(&c);
    c.runtime.block_on(c.client.truncate(b"/f", 3)).unwrap();
    expect(&c, file, b"fir");
    c.runtime.block_on(c.client.truncate(b"/f", 0)).unwrap();
    append(&c, b"another chunk");
    looked(&c);
    c.runtime.block_on(c.client.truncate(b"/f", 0)).unwrap();
    append(&c, b"and another");
    expect(&c, file, b"and another");
    looked(&c);
    let primary = c.runtime.block_on(c.client.layout(file)).unwrap().chunks()[0].config.primary;
    let name =
        (1..=3).map(|n| format!("cs{n}")).find(|n| c.cluster.store(n).unwrap() == Some(primary)).unwrap();
    c.stop(&name);
    append(&c, b", of another primary");
    expect(&c, file, b"and another, of another primary");
}

#[test]
fn an_appender_goes_on_behind_what_others_have_made_of_the_file() {
    let c = Running::start(1, 3);
    let length = 3_000_000;
    let done = async {
        let mut appender = c.client.appender(b"/f").await?;
        assert_eq!(appender.append(b"first").await?, 0);
        // A hole, and a hole with a chunk behind it.
        c.client.truncate(b"/f", 100).await?;
        assert_eq!(appender.append(b"second").await?, 100);
        c.client.write_at(b"/f", length, b"third").await?;
        assert_eq!(appender.append(b"fourth").await?, length + 5);
        c.client.write_at(b"/f", 50, b"in a hole").await?;
        let file = c.client.open(b"/f").await?;
        file.read_at(0, file.len()).await
    };
    let found = c.runtime.block_on(done).unwrap();
    let mut wanted = vec![0; length as usize];
    for (at, bytes) in [(0, &b"first"[..]), (50, b"in a hole"), (100, b"second")] {
        wanted[at..at + bytes.len()].copy_from_slice(bytes);
    }
    wanted.extend_from_slice(b"thirdfourth");
    assert!(found == wanted, "{} bytes, and {} were written", found.len(), wanted.len());
}

#[test]
fn callers_that_do_not_belong_get_a_reason() {
    let c = Running::start(1, 3);
    let file = c.cluster.client_file().unwrap();
    let stores = c.runtime.block_on(c.client.stores()).unwrap();
    let cluster = ClusterId(u64::from_str_radix(&file.cluster, 16).unwrap());
    let ask = |addr: &str, cluster: ClusterId, hello: &Hello| {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(&wire::frame(cluster, 0, 0, hello, 0)).unwrap();
        let mut head = [0; HEADER_BYTES];
        stream.read_exact(&mut head).unwrap();
        let header = Header::decode(&head).unwrap();
        let mut body = vec![0; header.body_len as usize];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(header.kind, Kind::Refused);
        wire::decode::<common::Refusal>(&body).unwrap().code
    };
    for addr in [file.masters[0].clone(), stores[0].addr.to_string()] {
        assert_eq!(ask(&addr, ClusterId(1), &Hello::new(Caller::Client)), Code::WrongCluster);
        let newer = Hello { caller: Caller::Client, version_min: 7, version_max: 9 };
        assert_eq!(ask(&addr, cluster, &newer), Code::UnknownVersion);
    }
    let wrong = Config {
        cluster: Some(ClusterId(99)),
        deadline: Duration::from_secs(2),
        ..Config::new(file.masters)
    };
    let error = c.runtime.block_on(Client::connect(wrong)).err().unwrap();
    assert_eq!(error.code(), Some(Code::WrongCluster), "{error}");
}

#[test]
fn a_member_that_was_away_gets_what_it_missed() {
    let mut c = Running::start(1, 3);
    let old = random(6_000_000, 31);
    std::fs::write(c.scratch().join("old"), &old).unwrap();
    c.ok(&["put", c.scratch().join("old").to_str().unwrap(), "/f"]);
    let members = |c: &Running| {
        let attr = c.runtime.block_on(c.client.lookup(b"/f")).unwrap();
        let layout = c.runtime.block_on(c.client.layout(attr.file)).unwrap();
        layout.chunks()[0].config.clone()
    };
    let before = members(&c);
    assert_eq!(before.members.len(), 3);
    let end = Instant::now() + Duration::from_secs(30);
    // Every member has been told that all it has is committed: what is not known to be so is copied
    // again.
    for store in &before.members {
        while c.runtime.block_on(c.client.replica(&before, *store)).map_or(true, |r| r.committed < r.applied)
        {
            assert!(Instant::now() < end, "{store} is not told the commit point");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    c.stop("cs2");
    let new = random(100_000, 32);
    c.runtime.block_on(c.client.write_at(b"/f", 1_000_000, &new)).unwrap();
    assert_eq!(members(&c).members.len(), 2, "the write went on without the third");
    c.cluster.start("cs2").unwrap();
    while members(&c).members.len() < 3 {
        assert!(Instant::now() < end, "{:?}", c.runtime.block_on(c.client.repairs()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let config = members(&c);
    assert!(config.epoch > before.epoch);
    // Only what was missed was copied: the store says how much.
    let copied = c.copied("cs2", end);
    assert!((new.len()..300_000).contains(&copied), "{copied} bytes were copied");
    // It alone has it all.
    c.cluster.kill("cs1").unwrap();
    c.cluster.kill("cs3").unwrap();
    let wanted = [&old[..1_000_000], &new[..], &old[1_100_000..]].concat();
    let read = c.runtime.block_on(async { c.client.open(b"/f").await?.read_at(0, 1 << 30).await });
    assert!(read.unwrap() == wanted, "the new member serves other bytes");
}

/// A store that has registered a moment ago is not in the table of those that pass bytes on to it: they ask for it. If
/// they took it for lost, the primary alone would get the bytes, and members would read them off its disk.
#[test]
fn bytes_go_down_the_chain_to_a_store_that_has_just_registered() {
    const FILES: usize = 8;
    const FILE_BYTES: usize = 8 << 20;
    let mut c = Running::start(1, 2);
    c.cluster.grow(&Spec::small(1, 3)).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while c.runtime.block_on(c.client.stores()).unwrap().iter().filter(|s| s.up).count() < 3 {
        assert!(Instant::now() < end, "the third store does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
    let read = |c: &Running| -> u64 {
        let of = |name: &String| {
            let pid = c.cluster.worker_pid(name).expect("it runs");
            let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
            io.lines().find_map(|l| l.strip_prefix("read_bytes: ")).unwrap().parse::<u64>().unwrap()
        };
        ["cs1", "cs2", "cs3"].iter().map(|n| of(&n.to_string())).sum()
    };
    let before = read(&c);
    let data = random(FILE_BYTES, 33);
    for n in 0..FILES {
        c.runtime.block_on(async {
            let mut file = c.client.put(format!("/f{n}").as_bytes()).await.unwrap();
            file.write(&data).await.unwrap();
            file.finish(0o644, 0, false).await.unwrap();
        });
    }
    let read = read(&c) - before;
    assert!(read < FILE_BYTES as u64, "members have read {read} bytes off the disk of a primary");
}

#[test]
fn a_copy_that_rots_is_found_without_a_reader_and_made_anew() {
    use std::os::unix::fs::FileExt;
    let mut c = Running::start_with(1, 3, "scrub_period_s = 2\n");
    let data = random(3_000_000, 9);
    c.runtime.block_on(async {
        let mut file = c.client.put(b"/f").await.unwrap();
        file.write(&data).await.unwrap();
        file.finish(0o644, 0, false).await.unwrap();
    });
    // Killed, it would take rot in its last group for writes that were never acknowledged.
    c.stop("cs1");
    let path = c.cluster.dir().join("cs1/data/extents/000000");
    let extents = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut block = vec![0; 4096];
    for at in (128 * 1024..32 * 1024 * 1024u64).step_by(4096) {
        extents.read_exact_at(&mut block, at).unwrap();
        if block.iter().any(|b| *b != 0) {
            extents.write_all_at(&[block[77] ^ 4], at + 77).unwrap();
        }
    }
    extents.sync_all().unwrap();
    c.cluster.start("cs1").unwrap();
    let config = |c: &Running| {
        let attr = c.runtime.block_on(c.client.lookup(b"/f")).unwrap();
        c.runtime.block_on(c.client.layout(attr.file)).unwrap().chunks()[0].config.clone()
    };
    // Out it goes, and in again.
    let end = Instant::now() + Duration::from_secs(40);
    assert_eq!(c.copied("cs1", end), data.len());
    while config(&c).members.len() < 3 {
        assert!(Instant::now() < end, "{:?} {:?}", config(&c), c.runtime.block_on(c.client.repairs()));
        std::thread::sleep(Duration::from_millis(50));
    }
    for name in ["cs2", "cs3"] {
        c.cluster.kill(name).unwrap();
    }
    let read = c.runtime.block_on(async { c.client.open(b"/f").await?.read_at(0, 1 << 30).await });
    assert!(read.unwrap() == data, "the copy that was made anew serves other bytes");
}

/// A write's bytes in the log of a store are changed, and every checksum with them: no scrub can see it.
fn forge(log: &Path, bytes: &[u8]) {
    let mut all = std::fs::read(log).unwrap();
    let at = all.windows(bytes.len()).position(|w| w == bytes).expect("the write is in the log");
    let group =
        (0..=at / 4096).rev().map(|block| block * 4096).find(|b| all[*b..].starts_with(b"CRNL")).unwrap();
    let len = u32::from_le_bytes(all[group + 32..][..4].try_into().unwrap()) as usize;
    let records = group + 64..group + 64 + len;
    all[at + 5] ^= 1;
    for n in 0..bytes.len().div_ceil(4096) {
        let slice = n * 4096..bytes.len().min((n + 1) * 4096);
        let old = common::checksum::crc32c(&bytes[slice.clone()]).to_le_bytes();
        let new = common::checksum::crc32c(&all[at + slice.start..at + slice.end]).to_le_bytes();
        let found =
            all[records.clone()].windows(4).position(|w| w == old).expect("its checksum is beside it");
        all[records.start + found..][..4].copy_from_slice(&new);
    }
    let crc = common::checksum::crc32c(&all[records]).to_le_bytes();
    all[group + 36..][..4].copy_from_slice(&crc);
    let crc = common::checksum::crc32c(&all[group..group + 60]).to_le_bytes();
    all[group + 60..][..4].copy_from_slice(&crc);
    std::fs::write(log, all).unwrap();
}

#[test]
fn an_audit_finds_a_copy_that_differs_though_its_checksums_are_right() {
    let mut c = Running::start(1, 4);
    let record: String = random(3000, 77).iter().map(|b| char::from(b'a' + b % 26)).collect();
    c.ok(&["mkdir", "/d"]);
    c.ok(&["append", "/d/log", &record]);
    c.ok(&["append", "/d/other", "same everywhere"]);
    let audit = |c: &Running, args: &[&str]| -> (bool, Vec<serde_json::Value>) {
        let out = c.cairn(&[&["--json", "admin", "audit"], args].concat());
        let lines = String::from_utf8(out.stdout).unwrap();
        (out.status.success(), lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect())
    };
    let (good, said) = audit(&c, &[]);
    assert!(good && said.len() == 1, "{said:?}");
    assert_eq!(
        (&said[0]["files"], &said[0]["chunks"], &said[0]["bytes"]),
        (&2.into(), &2.into(), &3015.into())
    );

    let shown = c.ok(&["--json", "admin", "chunks", "/d/log"]);
    let chunk: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let victim = chunk["replicas"][1]["store"].as_u64().unwrap();
    let name = format!("cs{victim}");
    assert_eq!(c.cluster.store(&name).unwrap(), Some(StoreId(victim as u32)));
    c.cluster.kill(&name).unwrap();
    forge(&c.cluster.dir().join(&name).join("data/log/0000"), record.as_bytes());
    c.cluster.start(&name).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let found = loop {
        let (good, said) = audit(&c, &["/d"]);
        if !good && said[0]["camps"].is_array() {
            break said;
        }
        assert!(Instant::now() < end, "{said:?}");
    };
    assert_eq!((&found[0]["path"], &found[0]["wrong"]), (&"/d/log".into(), &serde_json::json!([victim])));
    let (good, said) = audit(&c, &["/d", "--repair"]);
    assert!(!good && said[0]["made_anew"] == victim, "{said:?}");
    c.ok(&["admin", "repair", "--wait"]);
    let (good, said) = audit(&c, &["--from", "/d/log"]);
    assert!(good && said[0]["files"] == 2, "{said:?}");
    assert_eq!(audit(&c, &["--from", "/d/other"]).1[0]["files"], 1);
    assert_eq!(c.ok(&["cat", "/d/log"]), record.as_bytes());
}

#[test]
fn callers_that_go_away_leave_no_room_taken() {
    let c = Running::start(1, 3);
    c.runtime.block_on(async {
        let block = bytes::Bytes::from(vec![5; common::limits::WRITE_BYTES_MAX]);
        // More than any window: of writes to chunks, and of changes of the name space.
        for n in 0..600 {
            let path = format!("/left-{n}");
            let gone = async {
                let mut file = c.client.put(path.as_bytes()).await?;
                file.write_block(block.clone()).await?;
                std::future::pending::<client::Result<()>>().await
            };
            let _ = tokio::time::timeout(Duration::from_millis(n % 8), gone).await;
        }
        let after = c.client.create_with(b"/after", b"after");
        tokio::time::timeout(Duration::from_secs(20), after).await.expect("the client is stuck").unwrap();
    });
    assert_eq!(c.ok(&["cat", "/after"]), b"after");
}

#[test]
fn bad_configurations_and_directories_are_refused_with_a_sentence() {
    let dir = TempDir::new().unwrap();
    let run = |verb: &str, text: &str| {
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let out = Command::new(cairn()).arg(verb).arg("--config").arg(&path).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{text}");
        String::from_utf8(out.stderr).unwrap()
    };
    let data = dir.path().join("data");
    let chunkserver = |data: &Path, more: &str| {
        format!(
            "masters = [\"127.0.0.1:1\"]\ndata = [{data:?}]\nrack = \"r\"\nlog_segment_bytes = 8388608\n{more}"
        )
    };
    assert!(run("chunkserver", "masters = [").contains("line 1"));
    assert!(run("chunkserver", &chunkserver(&data, "colour = 1")).contains("colour"));
    assert!(run("chunkserver", &chunkserver(&data, "segment_bytes = 5")).contains("segment_bytes"));
    assert!(run("master", "id = 0\ncluster = \"x\"\nlisten = \"a\"\ndir = \"d\"").contains("id"));
    assert!(run("chunkserver", &chunkserver(&data, "")).contains("does not exist"));
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("holiday.jpg"), b"x").unwrap();
    assert!(run("chunkserver", &chunkserver(&data, "")).contains("not empty"));
    let used = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = dir.path().join("free");
    std::fs::create_dir(&free).unwrap();
    let port = format!("port = {}", used.local_addr().unwrap().port());
    assert!(run("chunkserver", &chunkserver(&free, &port)).contains("in use"));
    let master = format!(
        "id = 1\ncluster = \"00000000000000aa\"\nlisten = \"{}\"\ndir = {:?}",
        used.local_addr().unwrap(),
        dir.path().join("m")
    );
    assert!(run("master", &master).contains("in use"));
}

#[test]
fn what_up_started_is_stopped_by_the_name_that_every_command_takes() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let cairn = |args: &[&str]| {
        let mut cairn = Command::new(cairn());
        cairn.env_remove("CAIRN_CLUSTER").current_dir(dir.path()).args(args).output().unwrap()
    };
    let data_dir = data.to_str().unwrap();
    let small = ["--masters", "1", "--chunkservers", "1", "--racks", "1", "--log-segment-bytes", "8388608"];
    for name in [data_dir, "data/cluster.toml"] {
        let up = cairn(&[&["up", "--detach", "--dir", data_dir][..], &small].concat());
        assert!(up.status.success(), "{up:?}");
        let elsewhere = cairn(&["--cluster", "127.0.0.1:1", "down"]);
        assert_eq!(elsewhere.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&elsewhere.stderr).contains("there is no cluster in"),
            "{elsewhere:?}"
        );
        let down = cairn(&["--cluster", name, "down"]);
        assert!(String::from_utf8_lossy(&down.stdout).contains("stopped after"), "{down:?}");
    }
    assert_eq!(cairn(&["down"]).status.code(), Some(1), "nothing was started in ./cairn-data");
    let again = cairn(&["down", "--dir", data_dir]);
    assert!(again.status.success(), "it does not run, as was wanted: {again:?}");
}

#[test]
fn two_servers_cannot_share_a_directory() {
    let c = Running::start(1, 3);
    let out = Command::new(cairn())
        .arg("chunkserver")
        .arg("--config")
        .arg(c.cluster.config_of("cs1"))
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("another process serves it"),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let out =
        Command::new(cairn()).arg("master").arg("--config").arg(c.cluster.config_of("m1")).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("another master serves"));
    let second = Cluster::open(c.cluster.dir(), &Spec::small(1, 3), &cairn()).err().unwrap();
    assert!(second.to_string().contains("running"));
}

#[test]
fn rot_on_one_store_and_a_damaged_log_on_another_are_found_and_the_third_answers() {
    use std::os::unix::fs::FileExt;
    let mut c = Running::start(1, 3);
    let data = random(3_000_000, 9);
    c.runtime.block_on(async {
        let mut file = c.client.put(b"/f").await.unwrap();
        file.write(&data).await.unwrap();
        file.finish(0o644, 0, false).await.unwrap();
        for i in 0..20 {
            c.client.create_with(format!("/small-{i}").as_bytes(), &random(1000, i)).await.unwrap();
        }
    });
    for name in ["cs1", "cs2"] {
        c.cluster.kill(name).unwrap();
    }
    // One bit in every block of data of the first.
    let home = |name: &str| c.cluster.dir().join(name).join("data");
    let extents =
        std::fs::OpenOptions::new().read(true).write(true).open(home("cs1").join("extents/000000")).unwrap();
    let mut block = vec![0; 4096];
    let mut flipped = 0;
    for at in (128 * 1024..32 * 1024 * 1024u64).step_by(4096) {
        extents.read_exact_at(&mut block, at).unwrap();
        if block.iter().any(|b| *b != 0) {
            extents.write_all_at(&[block[77] ^ 4], at + 77).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 700, "{flipped} blocks of data");
    extents.sync_all().unwrap();
    // One bit in the first group of the log of the second.
    let log = std::fs::OpenOptions::new().read(true).write(true).open(home("cs2").join("log/0000")).unwrap();
    let mut byte = [0];
    log.read_exact_at(&mut byte, 70).unwrap();
    log.write_all_at(&[byte[0] ^ 1], 70).unwrap();
    log.sync_all().unwrap();
    c.cluster.start("cs1").unwrap();
    c.cluster.start("cs2").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let told = loop {
        let text = std::fs::read_to_string(c.cluster.dir().join("cs2/log.txt")).unwrap();
        // The whole sentence: its last words.
        if text.contains("the log is damaged") && text.contains("start with an empty one") {
            break text;
        }
        assert!(Instant::now() < deadline, "{text}");
    };
    assert!(told.contains("case D"), "{told}");
    for _ in 0..6 {
        let out = c.scratch().join("out");
        c.ok(&["get".as_ref(), "/f".as_ref(), out.as_os_str()]);
        assert!(std::fs::read(&out).unwrap() == data);
    }
    for i in 0..20 {
        let got = c.ok(&["cat", &format!("/small-{i}")]);
        assert!(
            got == random(1000, i),
            "small-{i} has {} bytes\n{}",
            got.len(),
            String::from_utf8_lossy(&c.ok(&["admin", "chunks", &format!("/small-{i}")]))
        );
    }
}
