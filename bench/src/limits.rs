//! What the machine can do by itself: measured in the same run as whatever is compared with it.

use anyhow::Context;
use rand::RngExt;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

/// Limits of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Direct sequential write of 1 MiB blocks into a new file, one at a time, MB/s.
    pub write_mbs: f64,
    /// The same into space that was written before, MB/s.
    pub rewrite_mbs: f64,
    /// Direct sequential read of 1 MiB blocks, MB/s.
    pub read_mbs: f64,
    /// One stream of TCP over loopback, MB/s.
    pub tcp_mbs: f64,
    /// Copying 1 MiB blocks in memory, MB/s.
    pub memcpy_mbs: f64,
    /// One 4 KiB `O_DIRECT|O_DSYNC` write into written space, median, microseconds.
    pub dsync_us: f64,
}

const MIB: usize = 1024 * 1024;
const FILE_MIB: usize = 1024;

/// Measures them; the scratch file goes away again.
pub fn measure(dir: &Path) -> anyhow::Result<Limits> {
    let path = dir.join(format!("cairn-bench-{}", std::process::id()));
    let disk = disk(&path);
    // Whatever happened: the file goes.
    let _ = std::fs::remove_file(&path);
    let (write_mbs, rewrite_mbs, read_mbs, dsync_us) =
        disk.with_context(|| format!("measure the disk at {}", path.display()))?;
    Ok(Limits { write_mbs, rewrite_mbs, read_mbs, dsync_us, tcp_mbs: tcp()?, memcpy_mbs: memcpy() })
}

fn mbs(bytes: usize, began: Instant) -> f64 {
    bytes as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn disk(path: &Path) -> anyhow::Result<(f64, f64, f64, f64)> {
    let mut memory = vec![0x5au8; MIB + 4096];
    let from = memory.as_ptr().align_offset(4096);
    let block = &mut memory[from..from + MIB];
    // Bytes that nothing on the way can compress or share.
    rand::rng().fill(&mut *block);
    let direct = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT | flags)
            .open(path)
    };
    let file = direct(0)?;
    let pass = || -> anyhow::Result<f64> {
        let began = Instant::now();
        for i in 0..FILE_MIB {
            file.write_all_at(block, (i * MIB) as u64)?;
        }
        file.sync_data()?;
        Ok(mbs(FILE_MIB * MIB, began))
    };
    let (write, rewrite) = (pass()?, pass()?);
    let began = Instant::now();
    for i in 0..FILE_MIB {
        file.read_exact_at(block, (i * MIB) as u64)?;
    }
    let read = mbs(FILE_MIB * MIB, began);
    let sync = direct(libc::O_DSYNC)?;
    let mut times: Vec<f64> = vec![];
    for i in 0..500u64 {
        let began = Instant::now();
        sync.write_all_at(&block[..4096], i * 4096)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok((write, rewrite, read, times[times.len() / 2]))
}

fn tcp() -> anyhow::Result<f64> {
    const TOTAL: usize = 1024 * MIB;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(addr)?;
        let block = vec![1u8; MIB / 4];
        for _ in 0..TOTAL / block.len() {
            stream.write_all(&block)?;
        }
        Ok(())
    });
    let (mut stream, _) = listener.accept()?;
    let mut block = vec![0u8; MIB / 4];
    let began = Instant::now();
    let mut got = 0;
    while got < TOTAL {
        match stream.read(&mut block)? {
            0 => break,
            n => got += n,
        }
    }
    let rate = mbs(got, began);
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok(rate)
}

fn memcpy() -> f64 {
    let from = vec![3u8; MIB];
    let mut to = vec![0u8; MIB];
    let began = Instant::now();
    for _ in 0..4096 {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
    }
    mbs(4096 * MIB, began)
}
