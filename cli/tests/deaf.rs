//! A chunkserver that can accept nobody, though it renews its session: others take its place.

use client::Client;
use ops::cluster::{Cluster, Spec};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::path::Path;
use std::time::{Duration, Instant};

/// A session, the next one, and some time.
const WITHIN: Duration = Duration::from_secs(12);

#[tokio::test]
async fn who_can_accept_nobody_is_not_waited_for() {
    let dir = tempfile::TempDir::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_cairn"));
    let mut cluster = Cluster::open(&dir.path().join("c"), &Spec::small(1, 4), binary).unwrap();
    cluster.start_all().unwrap();
    drop(cluster.healthy().await.unwrap());
    let worker = Pid::from_raw(cluster.worker_pid("cs1").unwrap() as i32).unwrap();
    // It has more open than that, and gets no more.
    let few = Rlimit { current: Some(1), maximum: Some(1024) };
    prlimit(Some(worker), Resource::Nofile, few).unwrap();
    let began = Instant::now();
    let client = Client::connect(cluster.client_file().unwrap().config().unwrap()).await.unwrap();
    for n in 0..40 {
        let path = format!("/{n}").into_bytes();
        client.create_with(&path, &[n; 100_000]).await.unwrap();
        let file = client.open(&path).await.unwrap();
        assert!(file.read_at(0, 100_000).await.unwrap() == [n; 100_000]);
    }
    assert!(began.elapsed() < WITHIN, "{:?}", began.elapsed());
    let all = Rlimit { current: Some(1024), maximum: Some(1024) };
    prlimit(Some(worker), Resource::Nofile, all).unwrap();
    // It is one of them again.
    cluster.healthy().await.unwrap();
    cluster.stop().unwrap();
}
