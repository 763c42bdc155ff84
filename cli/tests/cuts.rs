//! Files that one machine has open and another has cut, on a cluster of real processes.

mod running;

use common::limits::SESSION_MS;
use common::wire::Caller;
use common::wire::client_master::{MasterReply, MasterRequest, Mutation};
use common::{ClientId, RequestId};
use common_net::{Masters, Wait};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use running::Running;
use std::time::{Duration, Instant};

fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// A cluster, with a directory whose chunks are small.
fn start() -> Running {
    let c = Running::start(1, 3);
    c.ok(&["mkdir", "/d"]);
    c.ok(&["admin", "policy", "/d", "--chunk-mib", "1"]);
    c
}

#[test]
fn who_has_a_file_open_writes_to_what_others_have_left_of_it() {
    let c = start();
    let (mib, all) = (1 << 20, random(2_500_000, 7));
    let done = async {
        let other = client::Client::connect(c.cluster.client_file().unwrap().config().unwrap()).await?;
        // Cut, and written to again, while its last chunk is open here, and when it is full; then written to here: where
        // nothing was, where something is left, and where something was until it was cut.
        let cuts = [(0, 0), (10, 5), (1_200_000, 0), (1_200_000, 700_000)];
        let lengths = [1_500_000, 2 * mib as usize];
        for (n, (cut, rest)) in cuts.into_iter().cycle().take(64).enumerate() {
            let (length, at) = (lengths[n / 4 % 2], [2 * mib, 0, 12, 1_300_000][n / 8 % 4]);
            let has_snapshot = n >= 32;
            c.client.create(b"/d/f", true).await?;
            let seen = c.client.exactly(c.client.look(b"/d/f").await?).await?;
            let file = client::OpenFile::new(&c.client, &seen);
            file.write(0, &all[..length]).await?;
            file.sync().await?;
            if has_snapshot {
                c.client.take_snapshot(b"/d", b"s").await?;
            }
            other.truncate(b"/d/f", cut).await?;
            if rest > 0 {
                other.write_at(b"/d/f", cut, &all[..rest]).await?;
            }
            file.write(at, &all[7..5007]).await?;
            file.sync().await?;
            let mut wanted = all[..cut as usize].to_vec();
            wanted.extend_from_slice(&all[..rest]);
            let at = at as usize;
            wanted.resize(wanted.len().max(at + 5000), 0);
            wanted[at..at + 5000].copy_from_slice(&all[7..5007]);
            let found = c.client.open(b"/d/f").await?;
            let found = found.read_at(0, found.len()).await?;
            let what = format!("{length} bytes cut to {cut}, {rest} more, then written to at {at}");
            assert!(found == wanted, "{what}: {} bytes; a snapshot: {has_snapshot}", found.len());
            if has_snapshot {
                let kept = c.client.open(b"/d/.snapshot/s/f").await?;
                let kept = kept.read_at(0, kept.len()).await?;
                assert!(kept == all[..length], "{what}: the snapshot has {} bytes", kept.len());
                c.client.delete_snapshot(b"/d", b"s").await?;
            }
            c.client.unlink(b"/d/f", false).await?;
        }
        // Into a hole, by another, which makes one chunk more of it; then behind the end.
        c.client.create(b"/d/h", true).await?;
        let seen = c.client.exactly(c.client.look(b"/d/h").await?).await?;
        let file = client::OpenFile::new(&c.client, &seen);
        file.write(0, &all[..1000]).await?;
        file.truncate(1_181_433, false).await?;
        file.write(0, &all[..10]).await?;
        file.sync().await?;
        other.write_at(b"/d/h", 1_109_574, &all[..5]).await?;
        file.write(1_181_433, &all[7..8_521]).await?;
        file.sync().await?;
        let mut wanted = all[..1000].to_vec();
        wanted.resize(1_181_433, 0);
        wanted[1_109_574..1_109_579].copy_from_slice(&all[..5]);
        wanted.extend_from_slice(&all[7..8_521]);
        let found = c.client.open(b"/d/h").await?;
        let found = found.read_at(0, found.len()).await?;
        assert!(found == wanted, "{} bytes, and not {}", found.len(), wanted.len());
        // A chunk that was there before anything was written to it, and is gone before that, too.
        for n in 0..20 {
            let path = format!("/d/new{n}").into_bytes();
            let new = c.client.make_file(path.clone(), 0o644, Default::default(), true).await?;
            let file = client::OpenFile::new(&c.client, &new);
            other.truncate(&path, 0).await?;
            file.write(0, &all[..10]).await?;
            file.sync().await?;
            let found = other.open(&path).await?;
            assert!(found.read_at(0, 20).await? == all[..10], "{n}: {} bytes", found.len());
        }
        // One write that goes to several chunks: to what is left of one, and to one that is gone.
        c.client.create(b"/d/g", true).await?;
        let seen = c.client.exactly(c.client.look(b"/d/g").await?).await?;
        let file = client::OpenFile::new(&c.client, &seen);
        file.write(0, &all[..1_273_018]).await?;
        file.sync().await?;
        other.truncate(b"/d/g", 939_586).await?;
        file.write(574_164, &all[7..1_736_407]).await?;
        file.sync().await?;
        let found = c.client.open(b"/d/g").await?;
        let found = found.read_at(0, found.len()).await?;
        assert!(found == [&all[..574_164], &all[7..1_736_407]].concat(), "{} bytes", found.len());
        client::Result::Ok(())
    };
    c.runtime.block_on(done).unwrap();
}

/// Who cuts a file and ends before it has told anybody: the masters tell it.
#[test]
fn a_cut_is_heard_of_though_its_client_has_ended() {
    let (c, all) = (start(), random(2_500_000, 9));
    let done = async {
        let config = c.cluster.client_file().unwrap().config().unwrap();
        let ended =
            Masters::new(Caller::Client, config.masters.clone(), config.cluster.expect("it names it"));
        let (cuts, mut seq) = ([10, 1_200_000, 0], 0);
        for has_snapshots in [false, true] {
            let mut files = vec![];
            for (n, cut) in cuts.into_iter().enumerate() {
                let path = format!("/d/f{n}-{has_snapshots}").into_bytes();
                c.client.create(&path, true).await?;
                let seen = c.client.exactly(c.client.look(&path).await?).await?;
                let file = client::OpenFile::new(&c.client, &seen);
                file.write(0, &all[..1_500_000]).await?;
                file.sync().await?;
                // Sealed, and nothing cut.
                c.client.truncate(&path, 1_500_000).await?;
                if has_snapshots {
                    c.client.take_snapshot(b"/d", format!("s{n}").as_bytes()).await?;
                }
                let mutation = Mutation::Truncate { file: seen.attr.file, length: cut };
                seq += 1;
                let request = RequestId { client: ClientId(1), seq };
                let ask = MasterRequest::Mutate { request, lowest: seq, mutation };
                let answer = ended.ask(&ask, Wait::Short, Instant::now() + Duration::from_secs(10)).await;
                assert!(matches!(answer, Ok(MasterReply::Attr(_))), "{answer:?}");
                files.push((path, file, cut));
            }
            // A small one, emptied while its chunk is open.
            if !has_snapshots {
                c.client.create(b"/d/small", true).await?;
                c.client.write_at(b"/d/small", 0, &all[..100]).await?;
                let seen = c.client.exactly(c.client.look(b"/d/small").await?).await?;
                let file = client::OpenFile::new(&c.client, &seen);
                let layout = c.client.layout(seen.attr.file).await?;
                let [chunk] = layout.chunks() else { panic!("it is small: {layout:?}") };
                let (id, only) = (seen.attr.file, Some(chunk.config.handle));
                seq += 1;
                let mutation = Mutation::Empty { file: id, only, chunk: false, near: String::new() };
                let request = RequestId { client: ClientId(1), seq };
                let ask = MasterRequest::Mutate { request, lowest: seq, mutation };
                let answer = ended.ask(&ask, Wait::Short, Instant::now() + Duration::from_secs(10)).await;
                assert!(matches!(answer, Ok(MasterReply::Opened { .. })), "{answer:?}");
                files.push((b"/d/small".to_vec(), file, 0));
            }
            // By then each primary has heard of it, or is in no session.
            tokio::time::sleep(Duration::from_millis(SESSION_MS)).await;
            for (path, file, cut) in files {
                let at = 1_300_000;
                file.write(at, &all[7..5007]).await?;
                file.sync().await?;
                let mut wanted = all[..cut as usize].to_vec();
                wanted.resize(at as usize, 0);
                wanted.extend_from_slice(&all[7..5007]);
                let found = c.client.open(&path).await?;
                let found = found.read_at(0, found.len()).await?;
                assert!(found == wanted, "cut to {cut}, then written to: {} bytes", found.len());
            }
        }
        let kept = c.client.open(b"/d/.snapshot/s2/f2-true").await?;
        assert!(
            kept.read_at(0, kept.len()).await? == all[..1_500_000],
            "the snapshot has {} bytes",
            kept.len()
        );
        client::Result::Ok(())
    };
    c.runtime.block_on(done).unwrap();
}
