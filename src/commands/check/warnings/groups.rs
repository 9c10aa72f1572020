//! Who stands together in a warning.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::config::policy::{document::ById, values::Place};

/// Whose overrides these are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Account,
    Cluster,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Whose::Account => "account",
            Whose::Cluster => "cluster",
        }
    }
}

/// Those of whom the same is said.
pub(super) struct Group<'d, V> {
    pub(super) value: &'d V,
    /// Of them, who stands first in the file.
    first: &'d str,
    /// Where.
    pub(super) place: Place,
    /// How many there are besides.
    others: usize,
}

impl<V> Group<'_, V> {
    pub(super) fn named(&self, whose: Whose) -> String {
        let (whose, first) = (whose.name(), self.first);
        match self.others {
            0 => format!("{whose} `{first}`"),
            1 => format!("{whose} `{first}`, and of 1 more,"),
            others => format!("{whose} `{first}`, and of {others} more,"),
        }
    }
}

/// Equal values are one, as they are read. In the order of the file.
pub(super) fn groups<V>(by_id: &ById<V>) -> Vec<Group<'_, V>> {
    let mut groups: HashMap<*const V, Group<'_, V>> = HashMap::new();
    let before = |one: &Place, other: &Place| (one.line, one.column) < (other.line, other.column);
    for (index, (id, value)) in by_id.0.iter().enumerate() {
        let place = by_id.place(index);
        match groups.entry(Arc::as_ptr(value)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Group { value: &**value, first: id, place, others: 0 });
            }
            Entry::Occupied(group) => {
                let group = group.into_mut();
                group.others += 1;
                if before(&place, &group.place) {
                    (group.first, group.place) = (id, place);
                }
            }
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_unstable_by_key(|group| (group.place.line, group.place.column));
    groups
}
