//! Writes that go past the page cache. Their buffers and lengths are multiples of a block.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What `O_DIRECT` wants all to be a multiple of, in bytes.
pub const BLOCK: usize = 4096;

/// Opens a file to be written so, and makes it if it is not there. What is in it stays.
///
/// # Errors
/// The disk's.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(path)
}

/// Memory of which an aligned part is used.
#[derive(Default)]
pub struct Aligned(Vec<u8>);

impl Aligned {
    /// Its first `len` bytes; they keep their content until it must grow.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        self.0.resize((len + BLOCK).max(self.0.len()), 0);
        let from = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[from..from + len]
    }
}

/// Writes a file from its beginning to its end, a piece at a time: at no time does it owe the disk more than one.
pub struct Pieces {
    file: File,
    buffer: Aligned,
    /// Bytes that wait in the buffer.
    waiting: usize,
    /// Where they go.
    offset: u64,
}

impl Pieces {
    /// Bytes of a piece.
    const BYTES: usize = 1024 * 1024;

    /// Over what is in a file that `open` opened.
    pub fn over(file: File) -> Pieces {
        Pieces { file, buffer: Aligned::default(), waiting: 0, offset: 0 }
    }

    /// Writes what is left; the file ends there, durably. Gives its length in bytes.
    pub fn end(mut self) -> io::Result<u64> {
        let len = self.offset + self.waiting as u64;
        let whole = self.waiting.next_multiple_of(BLOCK);
        self.buffer.first(Self::BYTES)[self.waiting..whole].fill(0);
        self.file.write_all_at(self.buffer.first(whole), self.offset)?;
        self.file.set_len(len)?;
        self.file.sync_all()?;
        Ok(len)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(Self::BYTES - self.waiting);
        let buffer = self.buffer.first(Self::BYTES);
        buffer[self.waiting..self.waiting + taken].copy_from_slice(&bytes[..taken]);
        self.waiting += taken;
        if self.waiting == Self::BYTES {
            self.file.write_all_at(buffer, self.offset)?;
            self.offset += Self::BYTES as u64;
            self.waiting = 0;
        }
        Ok(taken)
    }

    /// What is left of a piece waits for the rest of it, or for the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
