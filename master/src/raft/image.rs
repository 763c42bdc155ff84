//! The image of a master's state: the file that stands for the log before it. Millions of files make an image of hundreds of
//! megabytes, so no part of the house has more than a piece of it in memory: it is encoded into the file, read from it
//! to be sent, and written as it comes.
//!
//! The file: magic, then parts (length, CRC-32C, bytes) - the first the description - then an empty part. Whole or not at
//! all: written aside, synced, renamed.

use super::direct::{self, Pieces};
use super::room::Room;
use super::{Snapshot, SnapshotMeta, from_bytes, to_bytes};
use common::checksum::crc32c;
use master_core::Metadata;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// First bytes of an image's file; its last digit is the version.
const MAGIC: &[u8; 8] = b"CRNSNAP2";
/// Most bytes of one part.
const PART_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 1024 * 1024;
/// What begins the names of images that are coming from another master.
const INCOMING: &str = "incoming-";

/// A whole image. It can be read as long as somebody holds it, whatever has taken its place.
#[derive(Debug)]
pub struct Image {
    file: Arc<File>,
    /// Where it lies aside, if it came from another master and has not taken its place.
    aside: Option<Aside>,
}

/// What an image says: as of when, and the state.
pub type Content = (SnapshotMeta, Metadata);

/// A file that is removed unless it is renamed.
#[derive(Debug)]
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // Renamed already, or removed at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Image {
    /// Its parts, the description first.
    ///
    /// # Errors
    /// The disk's, or that it is no image.
    pub fn parts(&self) -> io::Result<Parts> {
        let mut file = io::BufReader::with_capacity(READ_BYTES, From { file: self.file.clone(), at: 0 });
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic)?;
        match magic == *MAGIC {
            true => Ok(Parts { file, ended: false }),
            false => Err(bad("it is no image, or of another version of Cairn")),
        }
    }

    /// What it is an image of.
    fn decode(&self) -> io::Result<Content> {
        let mut parts = self.parts()?;
        let meta = parts.next().transpose()?.ok_or_else(|| bad("it is empty"))?;
        let meta = from_bytes(&meta).ok_or_else(|| bad("its description cannot be decoded"))?;
        let mut failed = None;
        let whole = std::iter::from_fn(|| match parts.next()? {
            Ok(part) => Some(part),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let state = Metadata::decode(whole);
        match failed {
            Some(error) => Err(error),
            None => Ok((meta, state.map_err(|code| io::Error::other(format!("decode its state: {code}")))?)),
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A file from here on, without its cursor: others read it, too.
struct From {
    file: Arc<File>,
    at: u64,
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The parts of an image, in order. Nothing follows an error.
pub struct Parts {
    file: io::BufReader<From>,
    ended: bool,
}

impl Parts {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut head = [0; 8];
        self.file.read_exact(&mut head)?;
        let len = u32::from_le_bytes(head[..4].try_into().expect("4 bytes"));
        let crc = u32::from_le_bytes(head[4..].try_into().expect("4 bytes"));
        if len > PART_BYTES_MAX {
            return Err(bad("a part is too long"));
        }
        let mut part = vec![0; len as usize];
        self.file.read_exact(&mut part)?;
        match crc32c(&part) == crc {
            true => Ok(part),
            false => Err(bad("a part does not match its checksum; remove this master and add an empty one")),
        }
    }
}

impl Iterator for Parts {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        if self.ended {
            return None;
        }
        let part = self.read();
        self.ended = part.as_ref().map_or(true, |part| part.is_empty());
        part.map(|part| (!part.is_empty()).then_some(part)).transpose()
    }
}

fn begin(file: File, meta: &SnapshotMeta) -> io::Result<Pieces> {
    let mut out = Pieces::over(file);
    out.write_all(MAGIC)?;
    write_part(&mut out, &to_bytes(meta))?;
    Ok(out)
}

fn write_part(out: &mut Pieces, part: &[u8]) -> io::Result<()> {
    out.write_all(&(part.len() as u32).to_le_bytes())?;
    out.write_all(&crc32c(part).to_le_bytes())?;
    out.write_all(part)
}

/// Where a master keeps the image of its state, and those that come or are being made.
pub struct Images {
    room: Arc<Room>,
    current: Mutex<Option<Snapshot>>,
    /// Numbers for those that come.
    next: AtomicU64,
}

impl Images {
    /// Those where there is room for them, and the state that the last one holds, if there is one.
    ///
    /// # Errors
    /// The disk's, with the path, or what is wrong with the image.
    pub fn open(room: Arc<Room>) -> anyhow::Result<(Arc<Images>, Option<Content>)> {
        for entry in std::fs::read_dir(room.dir())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(INCOMING) {
                std::fs::remove_file(entry.path())?;
            }
        }
        let images = Images { room, current: Mutex::default(), next: AtomicU64::new(0) };
        let path = images.room.place();
        let held = match File::open(&path) {
            Ok(file) => {
                let image = Image { file: Arc::new(file), aside: None };
                let decoded = image.decode();
                let (meta, state) = decoded.map_err(|e| anyhow::anyhow!("image {}: {e}", path.display()))?;
                images.set(&meta, image);
                Some((meta, state))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => anyhow::bail!("open {}: {error}", path.display()),
        };
        Ok((Arc::new(images), held))
    }

    /// The last one.
    pub fn current(&self) -> Option<Snapshot> {
        self.current.lock().expect("never poisoned").clone()
    }

    fn set(&self, meta: &SnapshotMeta, image: Image) -> Snapshot {
        let snapshot = Snapshot { meta: meta.clone(), snapshot: Arc::new(image) };
        *self.current.lock().expect("never poisoned") = Some(snapshot.clone());
        snapshot
    }

    /// Writes the image of a state, which becomes the last one unless a later one has come meanwhile. Gives whichever it
    /// is. Takes as long as the disk does.
    ///
    /// # Errors
    /// The disk's; it may be full.
    pub fn make(&self, meta: &SnapshotMeta, state: &Metadata) -> io::Result<Snapshot> {
        let alone = self.room.writing();
        let mut out = begin(direct::open(&self.room.aside())?, meta)?;
        state.encode(|part| write_part(&mut out, &part))?;
        write_part(&mut out, &[])?;
        let len = out.end()?;
        if let Some(later) = self.current().filter(|current| current.meta.last_log_id > meta.last_log_id) {
            self.room.take_for_next(later.snapshot.file.metadata()?.len());
            return Ok(later);
        }
        let aside = self.room.aside();
        let image = Image { file: Arc::new(File::open(&aside)?), aside: None };
        self.rename(&aside)?;
        let made = self.set(meta, image);
        self.room.take_for_next(len);
        drop(alone);
        Ok(made)
    }

    fn rename(&self, from: &Path) -> io::Result<()> {
        std::fs::rename(from, self.room.place())?;
        File::open(self.room.dir())?.sync_all()
    }

    /// One begins to come from another master.
    ///
    /// # Errors
    /// The disk's.
    pub fn receive(&self, meta: &SnapshotMeta) -> io::Result<Incoming> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.room.dir().join(format!("{INCOMING}{number}"));
        let (file, aside) = (direct::open(&path)?, Aside(path));
        Ok(Incoming { out: begin(file, meta)?, aside })
    }

    /// One that has come, or is another master's, becomes the last one. Gives its state.
    ///
    /// # Errors
    /// The disk's, or what is wrong with the image.
    pub fn install(&self, meta: &SnapshotMeta, image: &Image) -> io::Result<Metadata> {
        let copied;
        let image = match &image.aside {
            Some(_) => image,
            None => {
                let mut copy = self.receive(meta)?;
                for part in image.parts()?.skip(1) {
                    copy.push(&part?)?;
                }
                copied = copy.end()?;
                &copied
            }
        };
        let (_, state) = image.decode()?;
        let alone = self.room.writing();
        let aside = image.aside.as_ref().expect("it lies aside");
        self.rename(&aside.0)?;
        let len = image.file.metadata()?.len();
        self.set(meta, Image { file: image.file.clone(), aside: None });
        self.room.take_for_next(len);
        drop(alone);
        Ok(state)
    }
}

/// An image that is coming.
pub struct Incoming {
    out: Pieces,
    aside: Aside,
}

impl Incoming {
    /// Its next part, which is not the description.
    ///
    /// # Errors
    /// The disk's; it may be full.
    pub fn push(&mut self, part: &[u8]) -> io::Result<()> {
        write_part(&mut self.out, part)
    }

    /// That was all.
    ///
    /// # Errors
    /// The disk's.
    pub fn end(mut self) -> io::Result<Image> {
        write_part(&mut self.out, &[])?;
        self.out.end()?;
        Ok(Image { file: Arc::new(File::open(&self.aside.0)?), aside: Some(self.aside) })
    }
}
