//! Identities in few bytes.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::Cacheable;
use crate::authorize::{ClusterCredential, ClusterId, Identity, Secret, Writes};

/// What an [`Identity`] says besides what the credential says.
#[derive(Debug, Serialize, Deserialize)]
struct Packed<'a> {
    account: Option<&'a str>,
    /// None: the credential's.
    cluster: Option<&'a str>,
    labels: Vec<(&'a str, &'a str)>,
    writes: PackedWrites<'a>,
    /// Since 1970.
    expires_at: Option<Duration>,
}

#[derive(Debug, Serialize, Deserialize)]
enum PackedWrites<'a> {
    Own,
    #[serde(borrow)]
    Also(Vec<&'a str>),
    Any,
}

fn pack(identity: &Identity, named: Option<&ClusterId>) -> Vec<u8> {
    let Identity { cluster, account, labels, writes, expires_at } = identity;
    let packed = Packed {
        account: account.as_deref(),
        cluster: Some(cluster.as_str()).filter(|_| Some(cluster) != named),
        labels: labels.iter().map(|(name, value)| (&**name, &**value)).collect(),
        writes: match writes {
            Writes::Own => PackedWrites::Own,
            Writes::Also(clusters) => PackedWrites::Also(clusters.iter().map(|cluster| &**cluster).collect()),
            Writes::Any => PackedWrites::Any,
        },
        expires_at: expires_at.map(|end| end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
    };
    // Strings and numbers always serialise; nothing would unpack to nothing, which is a miss.
    postcard::to_allocvec(&packed).unwrap_or_default()
}

fn unpack(bytes: &[u8], named: Option<&ClusterId>) -> Option<Identity> {
    let Packed { account, cluster, labels, writes, expires_at } = postcard::from_bytes(bytes).ok()?;
    Some(Identity {
        cluster: match cluster {
            Some(cluster) => ClusterId::new(cluster).ok()?,
            None => named?.clone(),
        },
        account: account.map(Arc::from),
        labels: labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        writes: match writes {
            PackedWrites::Own => Writes::Own,
            PackedWrites::Also(clusters) => Writes::Also(Arc::new(clusters.into_iter().map(Box::from).collect())),
            PackedWrites::Any => Writes::Any,
        },
        expires_at: match expires_at {
            Some(end) => Some(SystemTime::UNIX_EPOCH.checked_add(end)?),
            None => None,
        },
    })
}

/// The credential names the cluster, so the bytes need not.
impl Cacheable<ClusterCredential> for Identity {
    fn pack(&self, credential: &ClusterCredential) -> Vec<u8> {
        pack(self, Some(credential.cluster()))
    }

    fn unpack(bytes: &[u8], credential: &ClusterCredential) -> Option<Self> {
        unpack(bytes, Some(credential.cluster()))
    }

    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

impl Cacheable<Secret> for Identity {
    fn pack(&self, _: &Secret) -> Vec<u8> {
        pack(self, None)
    }

    fn unpack(bytes: &[u8], _: &Secret) -> Option<Self> {
        unpack(bytes, None)
    }

    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

/// A credential together with what else its grant depends on.
impl<K, C> Cacheable<(K, C)> for Identity
where
    Identity: Cacheable<C>,
{
    fn pack(&self, (_, credential): &(K, C)) -> Vec<u8> {
        Cacheable::pack(self, credential)
    }

    fn unpack(bytes: &[u8], (_, credential): &(K, C)) -> Option<Self> {
        Cacheable::unpack(bytes, credential)
    }

    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: &str) -> ClusterId {
        ClusterId::new(id).unwrap()
    }

    #[test]
    fn identities_come_back_as_they_were() {
        let own = Identity::of(cluster("c1"));
        let rows = [
            own.clone(),
            Identity { account: Some("a1".into()), ..own.clone() },
            Identity { account: Some("".into()), writes: Writes::Any, ..own.clone() },
            Identity {
                labels: vec![("_id".into(), "c1".into()), ("x".into(), "".into())],
                writes: Writes::Also(Arc::new(["h1".into(), "h2".into()].into())),
                expires_at: Some(SystemTime::UNIX_EPOCH + Duration::new(4_000_000_000, 7)),
                ..own
            },
        ];
        for identity in rows {
            for named in [None, Some(cluster("c1")), Some(cluster("c2"))] {
                let bytes = pack(&identity, named.as_ref());
                assert_eq!(unpack(&bytes, named.as_ref()), Some(identity.clone()), "{named:?}");
                for end in 0..bytes.len() {
                    assert_eq!(unpack(&bytes[..end], named.as_ref()), None, "cut at {end}");
                }
            }
        }
    }

    /// UHC's ids: then no grant takes an allocation of its own.
    #[test]
    fn a_cluster_of_an_account_fits_inline() {
        let id = cluster("6d0a6b5e-2f0c-4d54-a8ba-6f2d1a1f0c4e");
        let identity = Identity { account: Some("1a2b3c4d5e6f7g8h9i0j1k2l3m4".into()), ..Identity::of(id.clone()) };
        assert!(pack(&identity, Some(&id)).len() <= 36, "{}", pack(&identity, Some(&id)).len());
    }

    #[test]
    fn garbage_is_nothing() {
        for bytes in [&[][..], &[2], &[0xff; 64], &[1, 0xff, 0xff, 0xff, 0xff, 0x0f], b"\x01\x05ab"] {
            assert_eq!(unpack(bytes, Some(&cluster("c1"))), None, "{bytes:?}");
        }
    }
}
