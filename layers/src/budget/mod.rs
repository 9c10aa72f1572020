//! How many bytes the requests of a process may buffer, all together.
//!
//! A [`BufferBudget`] is shared by the layers that buffer: [`HeadLayer`] reserves what a request takes without its body,
//! [`DecodeLayer`](crate::decode::DecodeLayer) what it keeps of a body before it keeps it, [`EncodeLayer`](crate::encode::EncodeLayer) what
//! it wrote anew, each until the request is answered. What does not fit is refused as `overloaded`, so that its sender comes back.
//!
//! ```
//! use infogw_layers::budget::BufferBudget;
//!
//! let budget = BufferBudget::new(1 << 20);
//! let mut reserved = budget.reserve(1000)?;
//! reserved.grow(24)?;
//! assert_eq!(budget.reserved(), 1024);
//! assert!(budget.reserve(1 << 20).is_err());
//! drop(reserved);
//! assert_eq!(budget.reserved(), 0);
//! # Ok::<(), infogw_layers::rejection::Rejection>(())
//! ```

mod head;

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::rejection::{Reason, Rejection};

pub use head::{Head, HeadFuture, HeadLayer};

/// What buffers wait for is an upstream, which is slow for longer than this.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A number of bytes that buffers share. Clones are the same budget.
#[derive(Debug, Clone)]
pub struct BufferBudget {
    bytes: usize,
    free: Arc<Semaphore>,
}

impl BufferBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        BufferBudget { bytes, free: Arc::new(Semaphore::new(bytes)) }
    }

    /// Bytes that are reserved now.
    pub fn reserved(&self) -> usize {
        self.bytes.saturating_sub(self.free.available_permits())
    }

    /// Reserves `bytes`.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] if they are not free.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, Rejection> {
        let bytes = u32::try_from(bytes).map_err(|_| self.rejection())?;
        let permit = Arc::clone(&self.free).try_acquire_many_owned(bytes).map_err(|_| self.rejection())?;
        Ok(Reservation { budget: self.clone(), permit })
    }

    fn rejection(&self) -> Rejection {
        let detail = format!("this gateway buffers as much as it may, {} bytes; send this again later", self.bytes);
        Rejection::new(Reason::Overloaded, detail).retry_after(RETRY_AFTER)
    }
}

/// Bytes that are reserved until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: BufferBudget,
    permit: OwnedSemaphorePermit,
}

impl Reservation {
    /// Bytes of this reservation.
    pub fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Reserves `bytes` more.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] if they are not free; what was reserved stays so.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Rejection> {
        // Permits are counted in 32 bits, together.
        if self.bytes().saturating_add(bytes) > u32::MAX as usize {
            return Err(self.budget.rejection());
        }
        let Reservation { permit, .. } = self.budget.reserve(bytes)?;
        self.permit.merge(permit);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_there_is_and_all_of_it_comes_back() {
        let budget = BufferBudget::new(100);
        let mut first = budget.reserve(60).unwrap();
        let refused = budget.clone().reserve(41).unwrap_err();
        assert_eq!((refused.reason(), refused.wait()), (Reason::Overloaded, Some(RETRY_AFTER)));
        let second = budget.reserve(30).unwrap();
        assert!(first.grow(11).is_err());
        assert_eq!((first.bytes(), budget.reserved()), (60, 90));
        first.grow(10).unwrap();
        assert_eq!(budget.reserved(), 100);
        drop(first);
        assert_eq!(budget.reserved(), 30);
        drop(second);
        assert!(budget.reserve(100).is_ok());
        assert_eq!(budget.reserved(), 0);
    }

    #[test]
    fn more_than_can_be_counted_is_refused() {
        let budget = BufferBudget::new(usize::MAX);
        assert!(budget.reserve(u32::MAX as usize + 1).is_err());
        let mut large = budget.reserve(u32::MAX as usize).unwrap();
        assert!(large.grow(1).is_err());
        assert_eq!(budget.reserved(), u32::MAX as usize);
    }
}
