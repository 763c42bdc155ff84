//! A disk in memory. It knows what is durable: a crash loses, tears and reorders the rest.

use bytes::Bytes;
use chunkserver_core::io::{DiskDone, DiskKind, DiskOp, FileRef};
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What the medium writes whole.
const SECTOR: usize = 512;

/// Bytes of a page of a file in memory.
const PAGE: usize = 4096;

/// Pages of checksums lie before this in a segment, and data behind it.
const PAGES_MAX: u64 = 40 * 1024;

/// A file's bytes; pages that were never written are zeros, and take no memory.
#[derive(Clone, Debug, Default, Hash)]
struct Sparse {
    pages: BTreeMap<u64, Arc<[u8]>>,
    len: u64,
}

impl Sparse {
    fn put(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        let mut data = data;
        let mut at = offset;
        while !data.is_empty() {
            let skip = at as usize % PAGE;
            let (part, rest) = data.split_at(data.len().min(PAGE - skip));
            let (number, zeros) = (at / PAGE as u64, part.iter().all(|byte| *byte == 0));
            at += part.len() as u64;
            data = rest;
            if zeros && !self.pages.contains_key(&number) {
                continue;
            }
            let page = self.pages.entry(number).or_insert_with(|| vec![0; PAGE].into());
            Arc::make_mut(page)[skip..skip + part.len()].copy_from_slice(part);
        }
    }

    fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let end = offset + len as u64;
        for (number, page) in self.pages.range(offset / PAGE as u64..end.div_ceil(PAGE as u64)) {
            let start = number * PAGE as u64;
            let (from, to) = (offset.max(start), end.min(start + PAGE as u64));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
        out
    }
}

#[derive(Clone, Debug, Default, Hash)]
struct FileBytes {
    /// What a read sees.
    seen: Sparse,
    /// What a power failure leaves for certain.
    durable: Sparse,
}

/// A disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    files: BTreeMap<FileRef, FileBytes>,
    /// Writes that were submitted and are not known durable: file, offset, bytes.
    loose: Vec<(FileRef, u64, Bytes)>,
    /// Files that were emptied since they were last made durable.
    released: BTreeSet<FileRef>,
    /// Most segments of extents; more are refused as a full disk refuses.
    pub segments_max: Option<u32>,
    /// Flushes and durable writes so far.
    pub flushes: u64,
}

/// What is on it, and what of that is durable; how it came there does not count.
impl Hash for MemDisk {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.files, &self.loose, &self.released).hash(state);
    }
}

impl MemDisk {
    /// A file as it is, durably: these bytes, then zeros up to `len`.
    pub fn with_file(mut self, file: FileRef, bytes: &[u8], len: u64) -> MemDisk {
        let mut seen = Sparse { len, ..Sparse::default() };
        seen.put(0, bytes);
        self.files.insert(file, FileBytes { durable: seen.clone(), seen });
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
                self.sync(file);
                Ok(Bytes::new())
            }
            DiskKind::Allocate { len } => match (file, self.segments_max) {
                (FileRef::Extents(n), Some(max)) if n >= max => Err("no space left on device".into()),
                _ => {
                    let zeros = Sparse { len, ..Sparse::default() };
                    self.files.insert(file, FileBytes { seen: zeros.clone(), durable: zeros });
                    self.loose.retain(|(of, ..)| *of != file);
                    self.released.remove(&file);
                    Ok(Bytes::new())
                }
            },
            DiskKind::Release => {
                self.files.entry(file).or_default().seen = Sparse::default();
                self.loose.retain(|(of, ..)| *of != file);
                self.released.insert(file);
                Ok(Bytes::new())
            }
        };
        DiskDone { token, result }
    }

    /// Bytes of a file; past its end come zeros.
    pub fn read(&self, file: FileRef, offset: u64, len: u32) -> Bytes {
        let bytes = self.files.get(&file).map(|f| f.seen.get(offset, len as usize));
        bytes.unwrap_or_else(|| vec![0; len as usize]).into()
    }

    fn write(&mut self, file: FileRef, offset: u64, data: Bytes, durable: bool) {
        let bytes = self.files.entry(file).or_default();
        // Pages of checksums are written to a segment that has given its room back, too.
        let has_room = offset + data.len() as u64 <= bytes.seen.len || offset < PAGES_MAX;
        assert!(
            has_room || !matches!(file, FileRef::Extents(_)),
            "{file:?} has no room for bytes at {offset}"
        );
        bytes.seen.put(offset, &data);
        if durable {
            // Only this write: what was written before elsewhere is as loose as it was.
            bytes.durable.put(offset, &data);
            self.flushes += 1;
        } else {
            self.loose.push((file, offset, data));
        }
    }

    /// Makes a file's writes durable; those of other files stay as loose as they were.
    fn sync(&mut self, file: FileRef) {
        let FileBytes { durable, .. } = self.files.entry(file).or_default();
        if self.released.remove(&file) {
            *durable = Sparse::default();
        }
        for (_, offset, data) in self.loose.extract_if(.., |(of, ..)| *of == file) {
            durable.put(offset, &data);
        }
        self.flushes += 1;
    }

    /// Makes everything durable.
    pub fn sync_all(&mut self) {
        for file in std::mem::take(&mut self.released) {
            self.files.entry(file).or_default().durable = Sparse::default();
        }
        for (file, offset, data) in std::mem::take(&mut self.loose) {
            self.files.entry(file).or_default().durable.put(offset, &data);
        }
        self.flushes += 1;
    }

    /// Power was lost: nothing that was not flushed survives.
    pub fn lose_unflushed(&mut self) {
        for file in std::mem::take(&mut self.released) {
            let bytes = self.files.entry(file).or_default();
            bytes.seen = bytes.durable.clone();
        }
        for (file, offset, data) in std::mem::take(&mut self.loose) {
            let bytes = self.files.entry(file).or_default();
            bytes.seen.put(offset, &bytes.durable.get(offset, data.len()));
        }
    }

    /// Power was lost: of each loose write, nothing, all, or some sectors survive.
    pub fn power_lost(&mut self, rng: &mut StdRng) {
        let loose = std::mem::take(&mut self.loose);
        for (file, offset, data) in &loose {
            let bytes = &mut self.files.entry(*file).or_default().durable;
            match rng.random_range(0..3) {
                0 => {}
                1 => bytes.put(*offset, data),
                _ => {
                    for (i, sector) in data.chunks(SECTOR).enumerate() {
                        if rng.random_bool(0.5) {
                            bytes.put(offset + (i * SECTOR) as u64, sector);
                        }
                    }
                }
            }
        }
        self.loose = loose;
        self.lose_unflushed();
    }

    /// Flips one bit of a file, for good.
    pub fn flip(&mut self, file: FileRef, byte: u64, bit: u8) {
        let bytes = self.files.get_mut(&file).expect("the file is there");
        for image in [&mut bytes.seen, &mut bytes.durable] {
            let flipped = image.get(byte, 1)[0] ^ (1 << bit);
            image.put(byte, &[flipped]);
        }
    }

    /// Bytes of a file in all.
    pub fn len(&self, file: FileRef) -> u64 {
        self.files.get(&file).map_or(0, |f| f.seen.len)
    }

    /// Its files.
    pub fn files(&self) -> Vec<FileRef> {
        self.files.keys().copied().collect()
    }
}
