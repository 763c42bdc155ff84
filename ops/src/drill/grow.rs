//! An empty chunkserver joins full ones: the others share with it.

use super::WHOLE_WITHIN;
use super::load::block;
use crate::cluster::{Cluster, Spec};
use anyhow::bail;
use std::time::{Duration, Instant};

/// Bytes that a chunkserver may use in the drill of growth, and what fills them: files of 64 MiB.
pub(super) const CAPACITY: u64 = 5 << 30;
const FILES: u64 = 32;
const BLOCKS: u64 = 64;
/// It has converged when the use of the fullest and of the emptiest store differ by less than this,
/// in bytes; the masters are content with a tenth of the capacity.
const SPREAD: u64 = 640 << 20;

/// Fills the cluster, adds a server, and waits until the others have shared with it.
pub(super) async fn run(
    cluster: &mut Cluster,
    spec: &Spec,
    client: &client::Client,
    round: u32,
) -> anyhow::Result<String> {
    let path = |n| format!("/drill-{round}/grow-{n}").into_bytes();
    for n in 0..FILES {
        let mut file = client.put(&path(n)).await?;
        for i in 0..BLOCKS {
            file.write_block(block(n * BLOCKS + i).into()).await?;
        }
        file.finish(0o644, 0, false).await?;
    }
    cluster.grow(spec)?;
    cluster.healthy().await?;
    let began = Instant::now();
    let mut first = None;
    loop {
        let used: Vec<u64> = client.stores().await?.iter().filter(|s| s.up).map(|s| s.used).collect();
        let (least, most) =
            (used.iter().min().copied().unwrap_or(0), used.iter().max().copied().unwrap_or(0));
        // What is told of their use lags behind.
        let known = first.get_or_insert((least, most));
        *known = (least.min(known.0), most.max(known.1));
        if most - least < SPREAD && began.elapsed() > Duration::from_secs(4) {
            let mib = |bytes: u64| bytes >> 20;
            return Ok(format!(
                "used by the emptiest and the fullest store: {} and {} MiB at first, {} and {} MiB after {:.0} s",
                mib(known.0),
                mib(known.1),
                mib(least),
                mib(most),
                began.elapsed().as_secs_f64()
            ));
        }
        if began.elapsed() > WHOLE_WITHIN {
            bail!("it does not converge: {used:?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
