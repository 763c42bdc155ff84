//! A disk in memory. It knows what is durable: a crash loses, tears and reorders the rest.

use bytes::Bytes;
use chunkserver_core::io::{DiskDone, DiskKind, DiskOp, FileRef};
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeMap;

/// What the medium writes whole.
const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct FileBytes {
    /// What a read sees.
    seen: Vec<u8>,
    /// What a power failure leaves for certain.
    durable: Vec<u8>,
}

/// A disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    files: BTreeMap<FileRef, FileBytes>,
    /// Writes that were submitted and are not known durable: file, offset, bytes.
    loose: Vec<(FileRef, u64, Bytes)>,
    /// Most segments of extents; more are refused as a full disk refuses.
    pub segments_max: Option<u32>,
    /// Flushes and durable writes so far.
    pub flushes: u64,
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let end = offset as usize + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset as usize..end].copy_from_slice(data);
}

impl MemDisk {
    /// A file as it is, durably: for the first checkpoint of a store.
    pub fn with_file(mut self, file: FileRef, bytes: Vec<u8>) -> MemDisk {
        self.files.insert(file, FileBytes { seen: bytes.clone(), durable: bytes });
        self
    }

    /// Performs an operation.
    pub fn perform(&mut self, op: DiskOp) -> DiskDone {
        let DiskOp { token, file, kind } = op;
        let result = match kind {
            DiskKind::Read { offset, len } => Ok(self.read(file, offset, len)),
            DiskKind::Write { offset, data, durable } => {
                self.write(file, offset, data, durable);
                Ok(Bytes::new())
            }
            DiskKind::Sync => {
                self.sync();
                Ok(Bytes::new())
            }
            DiskKind::Allocate { len } => match (file, self.segments_max) {
                (FileRef::Extents(n), Some(max)) if n >= max => Err("no space left on device".into()),
                _ => {
                    let zeros = vec![0; len as usize];
                    self.files.insert(file, FileBytes { seen: zeros.clone(), durable: zeros });
                    Ok(Bytes::new())
                }
            },
        };
        DiskDone { token, result }
    }

    /// Bytes of a file; past its end come zeros.
    pub fn read(&self, file: FileRef, offset: u64, len: u32) -> Bytes {
        let mut out = vec![0; len as usize];
        if let Some(bytes) = self.files.get(&file) {
            let from = (offset as usize).min(bytes.seen.len());
            let to = (offset as usize + len as usize).min(bytes.seen.len());
            out[..to - from].copy_from_slice(&bytes.seen[from..to]);
        }
        out.into()
    }

    fn write(&mut self, file: FileRef, offset: u64, data: Bytes, durable: bool) {
        let bytes = self.files.entry(file).or_default();
        put(&mut bytes.seen, offset, &data);
        if durable {
            // Only this write: what was written before elsewhere is as loose as it was.
            put(&mut bytes.durable, offset, &data);
            self.flushes += 1;
        } else {
            self.loose.push((file, offset, data));
        }
    }

    /// A flush.
    pub fn sync(&mut self) {
        for (file, offset, data) in std::mem::take(&mut self.loose) {
            put(&mut self.files.entry(file).or_default().durable, offset, &data);
        }
        self.flushes += 1;
    }

    /// Power was lost: of each loose write, nothing, all, or some sectors survive.
    pub fn power_lost(&mut self, rng: &mut StdRng) {
        for (file, offset, data) in std::mem::take(&mut self.loose) {
            let bytes = &mut self.files.entry(file).or_default().durable;
            match rng.random_range(0..3) {
                0 => {}
                1 => put(bytes, offset, &data),
                _ => {
                    for (i, sector) in data.chunks(SECTOR).enumerate() {
                        if rng.random_bool(0.5) {
                            put(bytes, offset + (i * SECTOR) as u64, sector);
                        }
                    }
                }
            }
        }
        for bytes in self.files.values_mut() {
            bytes.seen = bytes.durable.clone();
        }
    }

    /// Flips one bit of a file, for good.
    pub fn flip(&mut self, file: FileRef, byte: u64, bit: u8) {
        let bytes = self.files.get_mut(&file).expect("the file is there");
        for image in [&mut bytes.seen, &mut bytes.durable] {
            if let Some(b) = image.get_mut(byte as usize) {
                *b ^= 1 << bit;
            }
        }
    }

    /// Bytes of a file in all.
    pub fn len(&self, file: FileRef) -> u64 {
        self.files.get(&file).map_or(0, |f| f.seen.len() as u64)
    }

    /// Its files.
    pub fn files(&self) -> Vec<FileRef> {
        self.files.keys().copied().collect()
    }
}
