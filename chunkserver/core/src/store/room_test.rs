//! New segments come before writes have to wait for them, and when there is room again.

use super::alloc::Alloc;
use super::*;
use common::limits::WRITE_BYTES_MAX;

fn store(segments_max: u32) -> Store {
    let extent_segment_bytes = 16 << 20;
    let config = StoreConfig { extent_segment_bytes, segments_max, ..StoreConfig::default() };
    let log = Log::new(config.log_segment_bytes, config.log_segments, 0, 1, 0, 0);
    Store::new(config, log, Alloc::new(extent_segment_bytes), CrcTable::default())
}

/// The disk makes segments, or cannot.
fn settle(store: &mut Store, now: Time, has_room: bool) {
    let mut out = vec![];
    store.settle(now, &mut out);
    for output in out {
        let Output::Disk(DiskOp { token, kind, .. }) = output else { panic!("{output:?}") };
        assert!(matches!(kind, DiskKind::Allocate { .. }), "{kind:?}");
        let result = if has_room { Ok(Bytes::new()) } else { Err("no room".into()) };
        store.done(now, DiskDone { token, result }, &mut vec![]);
    }
}

/// Each segment ends with less than such a write takes; all these ends together would be room for many.
#[test]
fn long_writes_go_on_to_the_last_segment() {
    let mut store = store(200);
    let refused = loop {
        settle(&mut store, Time(0), true);
        match store.take(WRITE_BYTES_MAX as u32, Sort::New) {
            Ok(_) => {}
            Err(code) => break code,
        }
    };
    assert_eq!((refused, store.alloc.segments()), (Code::DiskFull, 200));
    assert!(store.take(BLOCK_BYTES as u32, Sort::New).is_ok(), "a short one still fits");
}

#[test]
fn a_full_disk_is_asked_again() {
    let mut store = store(2);
    let take = |store: &mut Store| store.take(WRITE_BYTES_MAX as u32, Sort::New);
    settle(&mut store, Time(0), false);
    assert_eq!(take(&mut store), Err(Code::DiskFull));
    settle(&mut store, Time(0) + ROOM_AGAIN, false);
    assert_eq!(take(&mut store), Err(Code::DiskFull));
    // It is not asked all the time.
    settle(&mut store, Time(0) + ROOM_AGAIN, true);
    assert_eq!(take(&mut store), Err(Code::DiskFull));
    settle(&mut store, Time(0) + ROOM_AGAIN + ROOM_AGAIN, true);
    assert!(take(&mut store).is_ok());
}

/// What is deleted makes room without a new segment.
#[test]
fn a_full_disk_with_room_is_not_full() {
    let mut store = store(3);
    settle(&mut store, Time(0), true);
    let mut held = vec![];
    loop {
        settle(&mut store, Time(0), false);
        match store.take(WRITE_BYTES_MAX as u32, Sort::New) {
            Ok(blocks) => held.push(blocks),
            Err(code) => break assert_eq!(code, Code::DiskFull),
        }
    }
    assert!(store.is_full());
    held.into_iter().for_each(|blocks| store.alloc.give(blocks));
    settle(&mut store, Time(0), false);
    assert!(!store.is_full());
}

/// Each block that is written over leaves a hole where it was. The holes are used again, so that the store stays as large as what it
/// holds, and long writes find room all the same.
#[test]
fn short_writes_use_the_holes_that_they_leave() {
    let mut store = store(200);
    let take = |store: &mut Store, bytes: usize| {
        settle(store, Time(0), true);
        store.take(bytes as u32, Sort::New).expect("the disk is not full")
    };
    // 128 MiB, of which any block may be the next.
    let mut held: Vec<Blocks> = (0..32_768).map(|_| take(&mut store, BLOCK_BYTES)).collect();
    let mut random = 1u64;
    for n in 0..1_000_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let which = (random >> 33) as usize % held.len();
        let new = take(&mut store, BLOCK_BYTES);
        store.alloc.give(std::mem::replace(&mut held[which], new));
        if n % 1000 == 0 {
            let long = take(&mut store, WRITE_BYTES_MAX);
            store.alloc.give(long);
        }
    }
    let segments = store.alloc.segments();
    assert!(segments <= 12, "{segments} segments for what fills 9");
}
