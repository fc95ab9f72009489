//! Which names a directory surely does not have, so that creating a file needs no look into the database.
//!
//! Owns hashes of names, a few exact ones, then a growing Bloom filter. Must not be asked about a directory whose names were
//! not all put in. A removed name stays: it costs one needless fetch, never a wrong answer.

/// Names kept as exact hashes before bits are used.
const EXACT: usize = 64;
/// Bits per name: with seven probes about 1 % of absent names are not recognised.
const BITS_PER_NAME: usize = 10;
const PROBES: u32 = 7;

/// The filter of one directory.
#[derive(Debug, Default)]
pub(crate) struct NameFilter {
    exact: Vec<u64>,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    bits: Vec<u64>,
    left: usize,
}

impl Layer {
    fn new(names: usize) -> Self {
        let words = (names * BITS_PER_NAME / 64).next_power_of_two();
        Self { bits: vec![0; words], left: names }
    }
    fn probes(&self, hash: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        // Two halves give all probes (Kirsch and Mitzenmacher 2006).
        let (mut a, step) = (hash, hash.rotate_left(32) | 1);
        let mask = self.bits.len() as u64 * 64 - 1;
        (0..PROBES).map(move |_| {
            let bit = a & mask;
            a = a.wrapping_add(step);
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }
    fn insert(&mut self, hash: u64) {
        for (word, bit) in self.probes(hash) {
            self.bits[word] |= bit;
        }
        self.left = self.left.saturating_sub(1);
    }
    fn may_hold(&self, hash: u64) -> bool {
        self.probes(hash).all(|(word, bit)| self.bits[word] & bit != 0)
    }
}

impl NameFilter {
    /// Adds a name by its hash; gives the bytes that the filter grew by.
    pub(crate) fn insert(&mut self, hash: u64) -> usize {
        if self.layers.is_empty() {
            if self.exact.contains(&hash) {
                return 0;
            }
            if self.exact.len() < EXACT {
                let before = self.exact.capacity();
                self.exact.push(hash);
                return (self.exact.capacity() - before) * 8;
            }
        }
        let grown = match self.layers.last().map(|l| l.left) {
            None => Some(EXACT * 8),
            Some(0) => Some((EXACT * 8) << (2 * self.layers.len()).min(24)),
            Some(_) => None,
        };
        let mut bytes = 0;
        if let Some(names) = grown {
            let mut layer = Layer::new(names);
            bytes = layer.bits.len() * 8;
            for h in core::mem::take(&mut self.exact) {
                layer.insert(h);
            }
            self.layers.push(layer);
        }
        if let Some(l) = self.layers.last_mut() {
            l.insert(hash);
        }
        bytes
    }

    /// False only if the name was never put in.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        self.exact.contains(&hash) || self.layers.iter().any(|l| l.may_hold(hash))
    }
    pub(crate) fn bytes(&self) -> usize {
        64 + self.exact.capacity() * 8 + self.layers.iter().map(|l| l.bits.len() * 8).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        let x = (n ^ (n >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB)
    }

    #[test]
    fn holds_all_and_hardly_anything_else() {
        let mut f = NameFilter::default();
        let n = 20_000;
        let mut bytes = 64;
        for i in 1..=n {
            bytes += f.insert(hash(i));
        }
        assert!((1..=n).all(|i| f.may_hold(hash(i))));
        let wrong = (n + 1..2 * n).filter(|i| f.may_hold(hash(*i))).count();
        assert!(wrong < n as usize / 20, "{wrong} of {n}");
        assert!(f.bytes() <= bytes && bytes < 200_000, "{bytes}");
    }
}
