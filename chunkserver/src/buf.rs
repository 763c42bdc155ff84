//! Buffers that direct I/O can use: aligned to a block, recycled (the first touch of fresh pages
//! costs more than the copy).

#![expect(unsafe_code, reason = "aligned memory is not to be had otherwise")]

use bytes::Bytes;
use common::limits::{BLOCK_BYTES, PIECE_BYTES_MAX};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Buffers of one piece that a thread keeps for reuse.
const POOLED_MAX: usize = 128;
/// Who needs more than this gets such a buffer.
const POOLED_FROM: usize = PIECE_BYTES_MAX / 4 * 3;
/// Of so many blocks at most ...
const SMALL_BLOCKS: usize = 16;
/// ... it keeps so many of each size: what most groups of the log take.
const SMALL_MAX: usize = 4;

/// Buffers that were used and are kept.
struct Pool {
    pieces: Vec<AlignedBuf>,
    /// By their blocks, less one.
    small: [Vec<AlignedBuf>; SMALL_BLOCKS],
}

impl Pool {
    /// Where buffers of so many bytes are kept, and how many.
    fn of(&mut self, capacity: usize) -> Option<(&mut Vec<AlignedBuf>, usize)> {
        match capacity {
            PIECE_BYTES_MAX => Some((&mut self.pieces, POOLED_MAX)),
            _ => Some((self.small.get_mut((capacity / BLOCK_BYTES).checked_sub(1)?)?, SMALL_MAX)),
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> =
        const { RefCell::new(Pool { pieces: vec![], small: [const { vec![] }; SMALL_BLOCKS] }) };
}

/// Memory aligned to a block, all of it initialised.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the buffer owns its memory alone, as a `Vec` does.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references only read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// At least `len` bytes; whole blocks. Recycled where possible: the content is arbitrary.
    pub fn new(len: usize) -> AlignedBuf {
        let capacity = len.max(1).next_multiple_of(BLOCK_BYTES);
        let is_piece = capacity <= PIECE_BYTES_MAX && capacity > POOLED_FROM;
        let capacity = if is_piece { PIECE_BYTES_MAX } else { capacity };
        let kept = POOL.with_borrow_mut(|pool| pool.of(capacity).and_then(|(list, _)| list.pop()));
        kept.unwrap_or_else(|| AlignedBuf::fresh(capacity))
    }

    /// No bytes, and no memory.
    pub fn none() -> AlignedBuf {
        AlignedBuf { ptr: NonNull::dangling(), capacity: 0 }
    }

    fn fresh(capacity: usize) -> AlignedBuf {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        AlignedBuf { ptr, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES).expect("whole blocks below 2^63")
    }

    /// The bytes of `data`, and zeros to the end of the last block.
    pub fn padded(data: &[u8]) -> AlignedBuf {
        let mut buf = AlignedBuf::new(data.len());
        buf[..data.len()].copy_from_slice(data);
        let end = data.len().next_multiple_of(BLOCK_BYTES);
        buf[data.len()..end].fill(0);
        buf
    }

    /// The first `len` bytes as shared bytes; the memory comes back to the pool in the end.
    pub fn freeze(self, len: usize) -> Bytes {
        assert!(len <= self.capacity);
        Bytes::from_owner(Pooled(Some(self))).slice(..len)
    }

    /// Where it begins.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `capacity` bytes were allocated, zeroed, and are owned by this value; none need no memory.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.capacity) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.capacity) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: allocated with just this layout, freed once.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

struct Pooled(Option<AlignedBuf>);

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let buf = self.0.take().expect("dropped once");
        // The thread may be ending; then the memory is simply freed.
        let _ = POOL.try_with(|pool| {
            if let Some((list, max)) = pool.borrow_mut().of(buf.capacity)
                && list.len() < max
            {
                list.push(buf);
            }
        });
    }
}
