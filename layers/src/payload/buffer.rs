//! Buffers that a thread uses again: what decompressors and compressors write into must hold something before, and zeroing it costs
//! a twentieth of what the rest of a request does.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// How many buffers a thread keeps.
const KEPT: usize = 4;
/// The longest buffer that is kept, in bytes.
const LONGEST_KEPT: usize = 1 << 20;
/// The least step from one length to the next, in bytes.
const STEP: usize = 4 << 10;

thread_local! {
    static KEEP: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes to write over: what they are before is whatever was written last. Dropped, it is kept for the next one of its thread.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// `len` bytes. Never in a buffer that is much more than twice as long, so that many small ones do not hold many large ones.
    pub(crate) fn of_len(len: usize) -> Self {
        if len > LONGEST_KEPT {
            return Buffer::from(vec![0; len]);
        }
        // One length for all that are about as long.
        let rounded = len.next_multiple_of(STEP.max(len.next_power_of_two() / 8));
        let fits = |bytes: &Vec<u8>| bytes.len() >= len && bytes.len() <= 2 * rounded;
        let kept = KEEP.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            let found = kept.iter().position(fits)?;
            Some(kept.remove(found))
        });
        Buffer { bytes: kept.ok().flatten().unwrap_or_else(|| vec![0; rounded]), len }
    }

    /// Forgets all but the first `len` bytes.
    #[cfg(feature = "encode")]
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Buffer { len: bytes.len(), bytes }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if (1..=LONGEST_KEPT).contains(&bytes.len()) {
            // A thread that ends keeps nothing.
            let _ = KEEP.try_with(|kept| {
                let mut kept = kept.borrow_mut();
                if kept.len() == KEPT {
                    // The one that was not wanted for longest.
                    kept.remove(0);
                }
                kept.push(bytes);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Vec<usize> {
        KEEP.with_borrow(|kept| kept.iter().map(Vec::len).collect())
    }

    #[test]
    fn a_buffer_is_used_again_by_those_of_its_size() {
        drop(Buffer::of_len(100_000));
        let [first] = kept()[..] else { panic!("{:?}", kept()) };
        let again = Buffer::of_len(98_000);
        assert_eq!((again.len(), again.bytes.len(), kept()), (98_000, first, vec![]));
        drop(again);
        // Much smaller or larger: buffers of their own.
        assert!(Buffer::of_len(10_000).bytes.len() < 20_000);
        assert_eq!(Buffer::of_len(300_000).len(), 300_000);
        assert_eq!(kept().len(), 3);
    }

    #[test]
    fn what_is_kept_is_bounded_and_follows_what_is_wanted() {
        drop((1..10).map(|n| Buffer::of_len(n << 16)).collect::<Vec<_>>());
        assert_eq!(kept().len(), KEPT);
        drop(Buffer::of_len(LONGEST_KEPT + 1));
        assert!(kept().iter().all(|len| *len <= LONGEST_KEPT));
        assert_eq!(Buffer::of_len(LONGEST_KEPT + 1).bytes.len(), LONGEST_KEPT + 1);
        for _ in 0..KEPT {
            drop([Buffer::of_len(1000), Buffer::of_len(1000), Buffer::of_len(1000), Buffer::of_len(1000)]);
        }
        assert_eq!(kept(), [STEP; KEPT]);
    }
}
