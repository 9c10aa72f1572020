//! A body as it arrives: counted, and given room for as it comes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{DecodeError, NAME};
use crate::{
    budget::{BufferBudget, Reservation},
    rejection::Rejection,
};

/// What has arrived. What comes in a single chunk is not copied.
pub(super) struct Received {
    limit: usize,
    /// How long it says it is, 0 if it does not.
    declared: usize,
    chunk: Bytes,
    joined: BytesMut,
    /// Room for both in a budget.
    reserved: Option<Reservation>,
}

/// A body is believed to become this long if it says so; and, once it is longer than an eighth of it, eight times what is there.
pub(super) const BELIEVED: usize = 4 << 10;

impl Received {
    /// Nothing yet, of a body that may have `limit` bytes and says that it has `declared`, 0 if it does not say.
    ///
    /// # Errors
    /// If `budget` has no room for as much of it as will be believed: whoever has no place is told before it sends.
    pub(super) fn new(limit: usize, declared: usize, budget: Option<&BufferBudget>) -> Result<Self, Rejection> {
        let reserved = budget.map(|budget| budget.reserve(declared.min(BELIEVED))).transpose();
        let reserved = reserved.map_err(|rejection| rejection.by(NAME))?;
        Ok(Received { limit, declared, chunk: Bytes::new(), joined: BytesMut::new(), reserved })
    }

    /// Adds what came.
    ///
    /// # Errors
    /// If the body is too long, or the budget has no room for it.
    pub(super) fn push(&mut self, mut data: impl Buf) -> Result<(), Rejection> {
        let len = data.remaining();
        let so_far = self.chunk.len() + self.joined.len();
        if len > self.limit - so_far {
            return Err(DecodeError::TooLarge { what: "body", size: None, limit: self.limit }.into());
        }
        if so_far == 0 {
            self.reserve(len)?;
            self.chunk = data.copy_to_bytes(len);
        } else {
            let needed = self.chunk.len() + len;
            if self.joined.capacity() - self.joined.len() < needed {
                let total = self.joined.len() + needed;
                let believed = BELIEVED.max(8 * so_far);
                // Of few sizes, however a body is chopped up: an allocator then finds the room that the one before had.
                let room = total.next_power_of_two().max(1 << believed.ilog2());
                let room = match self.declared {
                    declared if declared < total => total.next_power_of_two(),
                    declared if declared <= believed => declared,
                    declared => room.min(declared),
                };
                // At least twice as much room as there was: so much is made, asked for or not.
                let more = room.max(2 * self.joined.capacity()) - self.joined.len();
                self.reserve(self.joined.len() + more)?;
                self.joined.reserve(more);
            }
            self.joined.put(std::mem::take(&mut self.chunk));
            self.joined.put(data);
        }
        Ok(())
    }

    /// Room for `bytes` in all.
    fn reserve(&mut self, bytes: usize) -> Result<(), Rejection> {
        let Some(reserved) = &mut self.reserved else { return Ok(()) };
        let more = bytes.saturating_sub(reserved.bytes());
        if more == 0 { Ok(()) } else { reserved.grow(more).map_err(|rejection| rejection.by(NAME)) }
    }

    /// The body, and the room that it takes until it is answered.
    pub(super) fn finish(&mut self) -> (Bytes, Option<Reservation>) {
        let body = if self.joined.is_empty() { std::mem::take(&mut self.chunk) } else { self.joined.split().freeze() };
        (body, self.reserved.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_what_there_is_room_for() {
        let budget = BufferBudget::new(1 << 20);
        let mut unsaid = Received::new(usize::MAX, 0, Some(&budget)).unwrap();
        for _ in 0..1000 {
            unsaid.push(Bytes::from_static(b"0123456789abcdef")).unwrap();
            assert!(budget.reserved() >= unsaid.joined.capacity().max(unsaid.chunk.len()));
        }
        let (body, reserved) = unsaid.finish();
        assert_eq!(body.len(), 16_000);
        drop(reserved);
        assert_eq!(budget.reserved(), 0);
    }

    #[test]
    fn room_is_of_few_sizes_however_a_body_is_chopped_up() {
        let body = Bytes::from(vec![7; 1_000_000]);
        for (declared, chunk) in
            [0, body.len()].into_iter().flat_map(|it| [999, 8192, 70_001, 600_000].map(|n| (it, n)))
        {
            let mut received = Received::new(usize::MAX, declared, None).unwrap();
            let mut rest = body.clone();
            while !rest.is_empty() {
                received.push(rest.split_to(chunk.min(rest.len()))).unwrap();
                let room = received.joined.capacity();
                assert!(room == 0 || room == declared || room.is_power_of_two(), "{room} for chunks of {chunk}");
                assert!(room <= 8 * (body.len() - rest.len()));
            }
            assert_eq!(received.finish().0, body);
        }
    }
}
