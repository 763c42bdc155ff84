//! A map from numbers that are given out in order - handles, file ids - to small values. Keys that
//! lie together share a block: a value costs what it is, and no key, no pointer and no half-empty
//! node of a tree beside it. Clones are O(1); a block is copied when it is changed under a clone.

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::Arc;

/// Keys of a block.
const KEYS: u64 = 64;

/// A key that is a number.
pub(crate) trait Number: Copy {
    fn number(self) -> u64;
    fn of(number: u64) -> Self;
}

/// The values of 64 keys, without gaps: a bit for each key that has one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block<V> {
    bits: u64,
    values: Vec<V>,
}

impl<V> Block<V> {
    /// Where the value of a key is, or would be.
    fn place(&self, key: u64) -> (usize, bool) {
        let bit = 1 << (key % KEYS);
        ((self.bits & (bit - 1)).count_ones() as usize, self.bits & bit != 0)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Packed<K, V> {
    blocks: OrdMap<u64, Arc<Block<V>>>,
    len: usize,
    keys: PhantomData<K>,
}

impl<K: Number, V: Clone> Packed<K, V> {
    pub fn new() -> Self {
        Packed { blocks: OrdMap::new(), len: 0, keys: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        let key = key.number();
        let block = self.blocks.get(&(key / KEYS))?;
        let (at, there) = block.place(key);
        there.then(|| &block.values[at])
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Puts a value in; gives the one that was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let key = key.number();
        let fresh = || Arc::new(Block { bits: 0, values: vec![] });
        let block = Arc::make_mut(self.blocks.entry(key / KEYS).or_insert_with(fresh));
        let (at, there) = block.place(key);
        if there {
            return Some(std::mem::replace(&mut block.values[at], value));
        }
        block.values.insert(at, value);
        block.bits |= 1 << (key % KEYS);
        self.len += 1;
        None
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let key = key.number();
        let block = Arc::make_mut(self.blocks.get_mut(&(key / KEYS))?);
        let (at, there) = block.place(key);
        if !there {
            return None;
        }
        let value = block.values.remove(at);
        block.bits &= !(1 << (key % KEYS));
        if block.values.capacity() > 2 * block.values.len() {
            block.values.shrink_to_fit();
        }
        if block.bits == 0 {
            self.blocks.remove(&(key / KEYS));
        }
        self.len -= 1;
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.from(K::of(0))
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// What must be done to `other` to make it this: values to put in, and keys to take out. What both
    /// share costs nothing.
    pub fn unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (K, Option<&'a V>)>
    where
        V: Eq,
    {
        let blocks = other.blocks.diff(&self.blocks).map(|item| match item {
            DiffItem::Add(number, new) => (*number, None, Some(new)),
            DiffItem::Update { old, new } => (*new.0, Some(old.1), Some(new.1)),
            DiffItem::Remove(number, old) => (*number, Some(old), None),
        });
        blocks.flat_map(|(number, old, new)| {
            let of = |block: Option<&'a Arc<Block<V>>>, bit| {
                let block = block?;
                let (at, there) = block.place(bit);
                there.then(|| &block.values[at])
            };
            let both = (0..KEYS).map(move |bit| (bit, of(old, bit), of(new, bit)));
            let unlike = both.filter(|(_, old, new)| old != new);
            unlike.map(move |(bit, _, new)| (K::of(number * KEYS + bit), new))
        })
    }

    /// The values of this key and all after it, in order.
    pub fn from(&self, first: K) -> impl Iterator<Item = (K, &V)> {
        let first = first.number();
        let blocks = self.blocks.range(first / KEYS..);
        let keys = blocks.flat_map(|(number, block)| {
            let bits = (0..KEYS).filter(|bit| block.bits >> bit & 1 == 1);
            bits.zip(&block.values).map(move |(bit, value)| (number * KEYS + bit, value))
        });
        keys.skip_while(move |(key, _)| *key < first).map(|(key, value)| (K::of(key), value))
    }
}

impl<K: Number, V: Clone> Extend<(K, V)> for Packed<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, list: I) {
        for (key, value) in list {
            self.insert(key, value);
        }
    }
}

impl<K: Number, V: Clone> Index<&K> for Packed<K, V> {
    type Output = V;
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    impl Number for u64 {
        fn number(self) -> u64 {
            self
        }
        fn of(number: u64) -> u64 {
            number
        }
    }

    /// The same as a map of the standard library, whatever is done; and a clone stays as it was.
    #[test]
    fn it_is_a_map() {
        for seed in 0..200u64 {
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = |below: u64| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x % below
            };
            let (mut map, mut model) = (Packed::<u64, u64>::new(), BTreeMap::new());
            let mut clones = vec![];
            for step in 0..400 {
                let key = if random(8) == 0 { u64::MAX - random(100) } else { random(300) };
                match random(5) {
                    0 | 1 => assert_eq!(map.remove(&key), model.remove(&key), "seed {seed}"),
                    _ => assert_eq!(map.insert(key, step), model.insert(key, step), "seed {seed}"),
                }
                if random(50) == 0 {
                    clones.push((map.clone(), model.clone()));
                }
                assert_eq!(map.get(&key), model.get(&key));
                let from = random(320);
                let after: Vec<_> = map.from(from).map(|(k, v)| (k, *v)).collect();
                assert_eq!(after, model.range(from..).map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
            }
            clones.push((map.clone(), model));
            for (clone, _) in &clones {
                let mut made = map.clone();
                for (key, value) in clone.unlike(&map) {
                    match value {
                        Some(value) => made.insert(key, *value),
                        None => made.remove(&key),
                    };
                }
                assert!(made.iter().eq(clone.iter()), "seed {seed}");
            }
            for (map, model) in clones {
                assert_eq!(map.len(), model.len(), "seed {seed}");
                assert!(map.iter().map(|(k, v)| (k, *v)).eq(model.into_iter()), "seed {seed}");
            }
        }
    }
}
