//! Clients on the machine of a chunkserver read its files themselves. What they read there is never from before what
//! was acknowledged: not when the server has died and was replaced at once, not when it stands still and its session
//! has ended, not when the bytes were written over a moment ago.

use client::{Client, FileReader};
use ops::cluster::{Cluster, Spec, signal};
use std::path::Path;
use std::time::{Duration, Instant};

/// So many that they do not travel, and lie, with the log.
const BYTES: usize = 256 * 1024;

/// A little more than the masters' grace after a start.
const GRACE: Duration = Duration::from_millis(3000);

struct Running {
    cluster: Cluster,
    writer: Client,
    reader: Client,
    _dir: tempfile::TempDir,
}

async fn start() -> Running {
    let dir = tempfile::TempDir::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_cairn"));
    let mut cluster = Cluster::open(&dir.path().join("c"), &Spec::small(1, 3), binary).unwrap();
    cluster.start_all().unwrap();
    let writer = cluster.healthy().await.unwrap();
    // A leader that has just begun waits for whom it has not seen yet.
    tokio::time::sleep(GRACE).await;
    let reader = Client::connect(cluster.client_file().unwrap().config().unwrap()).await.unwrap();
    Running { cluster, writer, reader, _dir: dir }
}

impl Running {
    /// A file that is read off a server's disk by now, and that server.
    async fn read_here(&self, path: &[u8]) -> (FileReader, String) {
        self.writer.create_with(path, &vec![1; BYTES]).await.unwrap();
        let file = self.reader.open(path).await.unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let before = self.reader.bytes_read_here();
            assert!(file.read_at(0, BYTES as u64).await.unwrap() == vec![1; BYTES]);
            if self.reader.bytes_read_here() == before + BYTES as u64 {
                break;
            }
            assert!(Instant::now() < end, "it is read over the wire");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let id = self.writer.lookup(path).await.unwrap().file;
        let layout = self.writer.layout(id).await.unwrap();
        let config = &layout.chunks()[0].config;
        let first = config.members[config.handle.0 as usize % config.members.len()];
        let names = self.cluster.names().unwrap();
        let served =
            |name: &&String| name.starts_with("cs") && self.cluster.store(name).unwrap() == Some(first);
        (file, names.iter().find(served).expect("somebody serves it").clone())
    }

    /// Writes over the file, and reads it, again and again for a while.
    async fn overwrite(&self, path: &[u8], file: &FileReader) {
        for n in 2..12u8 {
            self.writer.write_at(path, 0, &vec![n; BYTES]).await.unwrap();
            let read = file.read_at(0, BYTES as u64).await.unwrap();
            let old = read.iter().filter(|byte| **byte != n).count();
            assert_eq!(old, 0, "bytes from before write {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_over_is_not_read_any_more() {
    let running = start().await;
    let (file, _) = running.read_here(b"/written").await;
    running.overwrite(b"/written", &file).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_servers_files_are_not_read_any_more() {
    let running = start().await;
    let (file, server) = running.read_here(b"/dead").await;
    let began = Instant::now();
    signal(running.cluster.worker_pid(&server).unwrap(), "KILL").unwrap();
    running.writer.write_at(b"/dead", 0, &vec![2; BYTES]).await.unwrap();
    // Its board says that its session goes on for a while.
    let took = began.elapsed();
    println!("written over {took:?} after {server} has died");
    assert!(
        file.read_at(0, BYTES as u64).await.unwrap() == vec![2; BYTES],
        "{took:?} after {server} has died"
    );
    running.overwrite(b"/dead", &file).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_server_that_stands_still_are_not_read_after_its_session() {
    let running = start().await;
    let (file, server) = running.read_here(b"/still").await;
    let worker = running.cluster.worker_pid(&server).unwrap();
    signal(worker, "STOP").unwrap();
    // It goes on until its session has ended, and goes through then.
    running.writer.write_at(b"/still", 0, &vec![2; BYTES]).await.unwrap();
    assert!(file.read_at(0, BYTES as u64).await.unwrap() == vec![2; BYTES], "{server} stands still");
    running.overwrite(b"/still", &file).await;
    signal(worker, "CONT").unwrap();
    running.overwrite(b"/still", &file).await;
}

/// Files below a directory that this process has open.
fn open_below(dir: &Path) -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let below = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_link(entry.ok()?.path()).ok().filter(|path| path.starts_with(dir))
    };
    files.filter_map(below).count()
}

/// Its disk can be unmounted then, though the clients of this machine go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_servers_files_are_closed_though_nobody_reads_them() {
    let running = start().await;
    let (_file, server) = running.read_here(b"/closed").await;
    let data = running.cluster.dir().join(&server).join("data").canonicalize().unwrap();
    assert!(open_below(&data) > 0);
    signal(running.cluster.worker_pid(&server).unwrap(), "KILL").unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while open_below(&data) > 0 {
        assert!(Instant::now() < end, "files of {server} are still open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
