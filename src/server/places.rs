//! Places for connections: so many in all, and so many for one peer.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Those of one listener.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    peers: Option<Arc<Peers>>,
}

/// Connections by peer: as many entries as there are connections, at most.
#[derive(Debug)]
struct Peers {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A place that is free for whoever connects next.
pub(super) struct Free {
    _permit: Option<OwnedSemaphorePermit>,
}

/// A place that is taken; it is free again when this is dropped.
pub(super) struct Place {
    _taken: Free,
    peer: Option<(Arc<Peers>, IpAddr)>,
}

/// How many places are taken.
#[derive(Debug, Clone)]
pub(super) struct Crowd(Arc<Semaphore>);

impl Crowd {
    /// All of them, but for the one that is kept for whoever connects next.
    pub(super) fn is_full(&self) -> bool {
        self.0.available_permits() == 0
    }
}

impl Places {
    pub(super) fn new(most: NonZeroUsize, most_per_peer: Option<NonZeroUsize>) -> Self {
        let peers = most_per_peer.map(|most| Arc::new(Peers { most: most.get(), open: Mutex::default() }));
        Places { free: Arc::new(Semaphore::new(most.get())), peers }
    }

    /// Waits for a place.
    pub(super) async fn free(&self) -> Free {
        // The semaphore is never closed.
        Free { _permit: Arc::clone(&self.free).acquire_owned().await.ok() }
    }

    /// For those who have one: whether others are left.
    pub(super) fn crowd(&self) -> Crowd {
        Crowd(Arc::clone(&self.free))
    }

    /// Gives a place to this peer, unless it has as many as it may.
    pub(super) fn take(&self, place: Free, peer: IpAddr) -> Option<Place> {
        let Some(peers) = &self.peers else { return Some(Place { _taken: place, peer: None }) };
        let peer = network(peer);
        let mut open = peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = open.entry(peer).or_default();
        if *connections >= peers.most {
            return None;
        }
        *connections += 1;
        Some(Place { _taken: place, peer: Some((Arc::clone(peers), peer)) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((peers, peer)) = self.peer.take() else { return };
        let mut open = peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = open.get_mut(&peer) {
            *connections -= 1;
            if *connections == 0 {
                open.remove(&peer);
            }
        }
    }
}

/// Who has one address of IPv6 has the network's 64 bits full of them.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(peer) => Ipv6Addr::from_bits(peer.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_has_its_own_places_and_gives_them_back() {
        let places = Places::new(NonZeroUsize::new(9).unwrap(), NonZeroUsize::new(2));
        let free = || tokio::time::timeout(std::time::Duration::from_secs(5), places.free());
        let peer = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = places.take(free().await.unwrap(), peer("192.0.2.1")).unwrap();
        let second = places.take(free().await.unwrap(), peer("::ffff:192.0.2.1")).unwrap();
        assert!(places.take(free().await.unwrap(), peer("192.0.2.1")).is_none());
        let other = places.take(free().await.unwrap(), peer("192.0.2.2")).unwrap();
        let v6 = ["2001:db8::1", "2001:db8::2:1"].map(peer);
        let mut network = Vec::new();
        for peer in v6 {
            network.push(places.take(free().await.unwrap(), peer).unwrap());
        }
        assert!(places.take(free().await.unwrap(), peer("2001:db8::3")).is_none());
        let _neighbour = places.take(free().await.unwrap(), peer("2001:db8:0:1::3")).unwrap();
        drop(first);
        drop(places.take(free().await.unwrap(), peer("192.0.2.1")).unwrap());
        drop((second, other, network, _neighbour));
        assert_eq!(places.free.available_permits(), 9);
        assert!(places.peers.unwrap().open.lock().unwrap().is_empty());
    }
}
