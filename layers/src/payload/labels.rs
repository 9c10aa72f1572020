use std::cmp::Ordering;
#[cfg(feature = "decode")]
use std::ops::Range;

use infogw_proto::wire::{put_varint, varint_len};

use super::Span;

/// A label's field in `TimeSeries`, and the fields inside it.
const LABEL: u8 = 0x0a;
const NAME: u8 = 0x0a;
const VALUE: u8 = 0x12;

/// A canonical label block, read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LabelBlock<'a>(pub(crate) &'a [u8]);

/// One label of a block: its bytes, and where its field begins and ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LabelAt<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    start: usize,
    end: usize,
}

/// How a label begins whose content is shorter than 128 bytes, as that of all but all is. Whether it is canonical only its
/// [`value`](Self::value) tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShortLabel {
    /// Bytes of the whole field, if it is canonical.
    len: usize,
    name_len: usize,
    /// The first eight bytes of its name, filled up with zeros: compares as names do, unless it is equal.
    pub(crate) first: u64,
}

impl ShortLabel {
    /// The one that `bytes` begin with; `None` also where fewer than twelve are left.
    #[inline(always)]
    pub(crate) fn at_start_of(bytes: &[u8]) -> Option<Self> {
        const FORM: u32 = u32::from_le_bytes([LABEL, 0, NAME, 0]);
        const FIXED: u32 = u32::from_le_bytes([0xff, 0x80, 0xff, 0x80]);
        let start: &[u8; 12] = bytes.first_chunk()?;
        let form = u32::from_le_bytes(*start.first_chunk()?);
        let name_len = (form >> 24 & 0x7f) as usize;
        // Of a short name what stands behind it is cut off.
        let first = u64::from_be_bytes(*start.last_chunk()?) & FIRST[name_len];
        (form & FIXED == FORM).then_some(ShortLabel { len: 2 + (form >> 8 & 0x7f) as usize, name_len, first })
    }

    /// Its name. `bytes` are those that it is at the start of.
    #[inline(always)]
    pub(crate) fn name(self, bytes: &[u8]) -> &[u8] {
        bytes.get(4..4 + self.name_len).unwrap_or_default()
    }

    /// Its value, and what is behind it; `None` if it is not canonical.
    #[inline(always)]
    pub(crate) fn value(self, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (label, behind) = bytes.split_at_checked(self.len)?;
        let (form, value) = label.get(4 + self.name_len..)?.split_first_chunk()?;
        (usize::from(u16::from_le_bytes(*form)) == usize::from(VALUE) | value.len() << 8).then_some((value, behind))
    }
}

/// The bytes of eight that belong to a name, by its length.
static FIRST: [u64; 128] = {
    let mut first = [u64::MAX; 128];
    let mut len = 0;
    while len < 8 {
        first[len] = !(u64::MAX >> (8 * len));
        len += 1;
    }
    first
};

/// [`ShortLabel::first`] of a label called `name`.
#[inline]
fn first_of(name: &[u8]) -> u64 {
    match name.first_chunk() {
        Some(eight) => u64::from_be_bytes(*eight),
        None => name.iter().rev().fold(0, |behind, byte| behind >> 8 | u64::from(*byte) << 56),
    }
}

/// `block` without the short labels that it begins with and whose names are less than those that begin with `first`: most of them, as
/// most names differ early.
#[inline(always)]
fn behind_lesser(mut block: &[u8], first: u64) -> &[u8] {
    while let Some(&[_, len, _, _, ref name @ ..]) = block.first_chunk::<12>()
        // Where a name is shorter, what stands behind it makes it greater, and never less.
        && u64::from_be_bytes(*name) < first
        && len < 0x80
        && let Some(behind) = block.get(2 + usize::from(len)..)
    {
        block = behind;
    }
    block
}

impl<'a> LabelBlock<'a> {
    /// The label whose field begins at `start`; `None` at the end.
    #[inline]
    fn at(self, start: usize) -> Option<LabelAt<'a>> {
        let block = self.0;
        if block.get(start) != Some(&LABEL) {
            return None;
        }
        let (len, content) = length(block, start + 1)?;
        let end = content.checked_add(len)?;
        let (name_len, name_at) = length(block, content + 1)?;
        let value_tag = name_at.checked_add(name_len)?;
        let (value_len, value_at) = length(block, value_tag + 1)?;
        let value_end = value_at.checked_add(value_len)?;
        let label =
            LabelAt { name: block.get(name_at..value_tag)?, value: block.get(value_at..value_end)?, start, end };
        (value_end == end).then_some(label)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = LabelAt<'a>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let label = self.at(next)?;
            next = label.end;
            Some(label)
        })
    }

    /// The label `name`.
    #[inline]
    fn get(self, name: &[u8]) -> Option<LabelAt<'a>> {
        self.find(name).ok()
    }

    /// Where the label `name` is, or where it would have to be inserted.
    #[inline]
    fn find(self, name: &[u8]) -> Result<LabelAt<'a>, usize> {
        let first = first_of(name);
        let mut rest = self.0;
        loop {
            rest = behind_lesser(rest, first);
            let start = self.0.len() - rest.len();
            if let Some(short) = ShortLabel::at_start_of(rest) {
                if short.first > first {
                    return Err(start);
                }
                if short.first == first
                    && short.name_len == name.len()
                    && (name.len() <= 8 || short.name(rest) == name)
                    && let Some((value, behind)) = short.value(rest)
                {
                    return Ok(LabelAt { name: short.name(rest), value, start, end: self.0.len() - behind.len() });
                }
            }
            match self.compare(start, name) {
                Err(end) => rest = self.0.get(end..).unwrap_or_default(),
                Ok(found) => return found,
            }
        }
    }

    /// What [`find`](Self::find) says of a label whose field begins at `start`, whatever it is; or where it ends, if it is less.
    #[inline(never)]
    fn compare(self, start: usize, name: &[u8]) -> Result<Result<LabelAt<'a>, usize>, usize> {
        let Some(label) = self.at(start) else { return Ok(Err(start)) };
        match label.name.cmp(name) {
            Ordering::Less => Err(label.end),
            Ordering::Equal => Ok(Ok(label)),
            Ordering::Greater => Ok(Err(start)),
        }
    }

    /// The value of the label `name`, "" if there is none; and the block's bytes before and behind it.
    #[cfg(feature = "encode")]
    pub(crate) fn without(self, name: &[u8]) -> (&'a [u8], [&'a [u8]; 2]) {
        let (value, start, end) = match self.find(name) {
            Ok(LabelAt { value, start, end, .. }) => (value, start, end),
            Err(at) => (&[][..], at, at),
        };
        (value, [self.0.get(..start).unwrap_or_default(), self.0.get(end..).unwrap_or_default()])
    }

    /// The labels as text.
    pub(crate) fn pairs(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.iter().map(|label| (text(label.name), text(label.value)))
    }

    /// The bytes of the label `name`; none, at the place where they belong, if there is no such label.
    #[cfg(feature = "decode")]
    fn place(self, name: &[u8]) -> Range<usize> {
        match self.find(name) {
            Ok(LabelAt { start, end, .. }) => start..end,
            Err(start) => start..start,
        }
    }
}

/// The length that stands at `at`, and where it ends.
#[inline]
fn length(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = *bytes.get(at)?;
    if first < 0x80 {
        return Some((usize::from(first), at + 1));
    }
    let mut len = usize::from(first & 0x7f);
    for i in 1..5 {
        let byte = *bytes.get(at + i)?;
        len |= usize::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some((len, at + i + 1));
        }
    }
    None
}

/// Appends one label in its canonical spelling. Its value is `value` + `suffix`.
fn put_joined(out: &mut Vec<u8>, name: &[u8], value: &[u8], suffix: &[u8]) {
    let value_len = value.len() + suffix.len();
    out.push(LABEL);
    put_varint(out, content_len(name.len(), value_len) as u64);
    out.push(NAME);
    put_varint(out, name.len() as u64);
    out.extend_from_slice(name);
    out.push(VALUE);
    put_varint(out, value_len as u64);
    out.extend_from_slice(value);
    out.extend_from_slice(suffix);
}

/// Appends the metric name `name` + `suffix`.
#[cfg(feature = "decode")]
fn put_name(out: &mut Vec<u8>, name: &str, suffix: &str) {
    let len = name.len() + suffix.len();
    // What is always the same is copied at once.
    let [a, b, c, d, e, f, g, h] = *b"__name__";
    match u8::try_from(len) {
        Ok(short @ ..0x70) => {
            out.extend_from_slice(&[LABEL, short + 12, NAME, 8, a, b, c, d, e, f, g, h, VALUE, short]);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(suffix.as_bytes());
        }
        _ => put_joined(out, b"__name__", name.as_bytes(), suffix.as_bytes()),
    }
}

fn put_label(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put_joined(out, name, value, &[]);
}

/// Bytes of a label, without its tag and length.
fn content_len(name: usize, value: usize) -> usize {
    string_len(name) + string_len(value)
}

/// Bytes of a label.
fn label_len(name: usize, value: usize) -> usize {
    string_len(content_len(name, value))
}

fn string_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// One series' labels, to be looked at and edited in place.
///
/// They stay sorted by name, each name once, nothing empty, whatever is done to them.
#[derive(Debug)]
pub struct LabelSet<'a> {
    pub(super) index: usize,
    pub(super) source: &'a [u8],
    pub(super) side: &'a mut Vec<u8>,
    pub(super) block: Span,
    pub(super) in_side: bool,
    /// Bytes of `side` that nobody else's are, the block's own among them if it is there.
    pub(super) room: Span,
}

impl LabelSet<'_> {
    /// The series' place in the payload, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The metric's name, or "" if there is none.
    pub fn metric_name(&self) -> &str {
        self.value("__name__")
    }

    /// The labels, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels().pairs()
    }

    /// The value of the label `name`, or "" if there is none.
    #[inline]
    pub fn value(&self, name: &str) -> &str {
        text(self.bytes(name))
    }

    /// The bytes of [`value`](Self::value), without checking again that they are UTF-8.
    #[inline]
    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        self.labels().get(name.as_bytes()).map_or(&[], |label| label.value)
    }

    /// The same labels, to be edited in `side` while these stay as they are.
    #[cfg(feature = "enforce")]
    pub(crate) fn copy<'c>(&'c self, side: &'c mut Vec<u8>) -> LabelSet<'c> {
        let source = self.block.of(if self.in_side { self.side } else { self.source });
        LabelSet {
            index: self.index,
            source,
            side,
            block: Span::new(0, source.len()),
            in_side: false,
            room: Span::default(),
        }
    }

    /// Removes the label `name`; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        match self.labels().get(name.as_bytes()) {
            Some(LabelAt { start, end, .. }) => {
                self.cut(start, end);
                true
            }
            None => false,
        }
    }

    /// Removes the labels that `keep` says no to, shown by name and value.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &str) -> bool) {
        let (mut next, mut kept) = (0, 0);
        while let Some(LabelAt { name, value, start, end }) = self.labels().at(next) {
            next = end;
            if !keep(text(name), text(value)) {
                // Once; the places of its labels stay.
                if !self.in_side {
                    self.move_to_end([self.block]);
                }
                continue;
            }
            if kept < start {
                let from = self.block.start as usize;
                self.side.copy_within(from + start..from + end, from + kept);
            }
            kept += end - start;
        }
        if kept < next {
            let was_at_end = self.is_at_end();
            self.block.end = self.block.start + kept as u32;
            if was_at_end {
                self.side.truncate(self.block.end as usize);
            }
        }
    }

    /// Sets the label `name` to `value`, replacing what is there. An empty value removes it; an empty name is no label.
    pub fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() || value.is_empty() {
            self.remove(name);
            return;
        }
        let at = match self.labels().find(name.as_bytes()) {
            Ok(label) if label.value == value.as_bytes() => return,
            Ok(LabelAt { start, end, .. }) => {
                if self.in_side && label_len(name.len(), value.len()) <= end - start {
                    return self.overwrite(start, end, name, value);
                }
                self.cut(start, end);
                start
            }
            Err(at) => at,
        };
        let added = label_len(name.len(), value.len());
        if self.in_side && self.block.len() + added <= self.room.len() && !self.is_at_end() {
            return self.insert(at, added, name, value);
        }
        if !self.is_at_end() {
            self.move_to_end([self.block]);
        }
        let (from, end) = (self.block.start as usize + at, self.side.len());
        put_label(self.side, name.as_bytes(), value.as_bytes());
        let added = self.side.len() - end;
        if let Some(tail) = self.side.get_mut(from..) {
            tail.rotate_right(added);
        }
        self.block.end = self.side.len() as u32;
    }

    #[inline]
    fn labels(&self) -> LabelBlock<'_> {
        LabelBlock(self.block.of(if self.in_side { self.side } else { self.source }))
    }

    /// Inserts a label of `added` bytes at the block's byte `at`, where there is room for both, as far in front as there is.
    fn insert(&mut self, at: usize, added: usize, name: &str, value: &str) {
        let (start, end, front) = (self.block.start as usize, self.block.end as usize, self.room.start as usize);
        if front < start {
            self.side.copy_within(start..start + at, front);
        }
        self.side.copy_within(start + at..end, front + at + added);
        let side_end = self.side.len();
        put_label(self.side, name.as_bytes(), value.as_bytes());
        self.side.copy_within(side_end.., front + at);
        self.side.truncate(side_end);
        self.block = Span::new(front, front + (end - start) + added);
    }

    /// Writes a label over the block's bytes `start..end`, which are no fewer. They are the block's own.
    fn overwrite(&mut self, start: usize, end: usize, name: &str, value: &str) {
        let (from, side_end) = (self.block.start as usize + start, self.side.len());
        put_label(self.side, name.as_bytes(), value.as_bytes());
        let len = self.side.len() - side_end;
        self.side.copy_within(side_end.., from);
        self.side.truncate(side_end);
        if start + len < end {
            self.cut(start + len, end);
        }
    }

    /// Removes the block's bytes `start..end`.
    fn cut(&mut self, start: usize, end: usize) {
        let from = self.block.start;
        let head = Span { end: from + start as u32, ..self.block };
        let tail = Span { start: from + end as u32, ..self.block };
        if !self.in_side {
            return self.move_to_end([head, tail]);
        }
        // Its bytes are its own: it shrinks where it is.
        let was_at_end = self.is_at_end();
        self.side.copy_within(tail.start as usize..tail.end as usize, head.end as usize);
        self.block.end = head.end + tail.len() as u32;
        if was_at_end {
            self.side.truncate(self.block.end as usize);
        }
    }

    /// Whether the block is at the end of the side buffer, where it can grow and shrink.
    fn is_at_end(&self) -> bool {
        self.in_side && self.block.end as usize == self.side.len()
    }

    /// Makes a block of these parts of its own at the end of the side buffer.
    fn move_to_end<const N: usize>(&mut self, parts: [Span; N]) {
        // Once for all series, as most have the same done to them.
        if self.side.capacity() == 0 {
            self.side.reserve(self.source.len());
        }
        let to = self.side.len();
        for part in parts {
            match self.in_side {
                // An empty block may lie behind the end: the series before it can have become shorter.
                true if part.len() > 0 => self.side.extend_from_within(part.start as usize..part.end as usize),
                true => {}
                false => self.side.extend_from_slice(part.of(self.source)),
            }
        }
        self.block = Span::new(to, self.side.len());
        self.in_side = true;
    }
}

/// Canonical blocks hold UTF-8; that was checked when they were made.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Writes label blocks in canonical form, whatever order the labels come in. Kept for a whole payload: its scratch is reused.
#[cfg(feature = "decode")]
#[derive(Debug, Default)]
pub(crate) struct LabelWriter {
    /// The labels of this block, as they were written.
    labels: Vec<Span>,
    start: usize,
    sorted: bool,
}

#[cfg(feature = "decode")]
impl LabelWriter {
    /// Begins a block at the end of `out`.
    pub(crate) fn begin(&mut self, out: &[u8]) {
        self.labels.clear();
        self.start = out.len();
        self.sorted = true;
    }

    /// Adds a label. One with an empty name or value is no label.
    pub(crate) fn push(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
        self.push_joined(out, name, value, &[]);
    }

    /// Adds a label whose value is `value` + `suffix`.
    pub(crate) fn push_joined(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8], suffix: &[u8]) {
        if name.is_empty() || value.is_empty() && suffix.is_empty() {
            return;
        }
        if let Some(last) = self.labels.last() {
            self.sorted &= field(out, *last).name < name;
        }
        let start = out.len();
        put_joined(out, name, value, suffix);
        self.labels.push(Span::new(start, out.len()));
    }

    /// Ends the block: sorted by name; of labels that share a name the first one stays, as telemeter-server does it.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) -> Span {
        if !self.sorted {
            // By place among equal names, so that the first stays first.
            self.labels.sort_unstable_by(|&a, &b| (field(out, a).name, a.start).cmp(&(field(out, b).name, b.start)));
            self.labels.dedup_by(|later, first| field(out, *later).name == field(out, *first).name);
            let unsorted_end = out.len();
            for &label in &self.labels {
                out.extend_from_within(label.start as usize..label.end as usize);
            }
            out.drain(self.start..unsorted_end);
        }
        Span::new(self.start, out.len())
    }
}

/// Appends a canonical block: that of `block` with the metric name `name` + `suffix` and the label `added`, which sorts behind the
/// name. Either replaces a label of `block` that is called the same.
#[cfg(feature = "decode")]
pub(crate) fn put_block(
    out: &mut Vec<u8>,
    block: LabelBlock<'_>,
    (name, suffix): (&str, &str),
    added: Option<(&str, &str)>,
) -> Span {
    let start = out.len();
    let old = |bytes| block.0.get::<Range<usize>>(bytes).unwrap_or_default();
    let place = block.place(b"__name__");
    out.extend_from_slice(old(0..place.start));
    put_name(out, name, suffix);
    let mut from = place.end;
    if let Some((name, value)) = added {
        let place = block.place(name.as_bytes());
        out.extend_from_slice(old(from..place.start));
        put_label(out, name.as_bytes(), value.as_bytes());
        from = place.end;
    }
    out.extend_from_slice(old(from..block.0.len()));
    Span::new(start, out.len())
}

#[cfg(feature = "decode")]
fn field(out: &[u8], span: Span) -> LabelAt<'_> {
    let nothing = LabelAt { name: &[], value: &[], start: 0, end: 0 };
    LabelBlock(span.of(out)).at(0).unwrap_or(nothing)
}

#[cfg(all(test, feature = "decode"))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn block(labels: &[(String, String)]) -> Vec<u8> {
        let (mut out, mut writer) = (Vec::new(), LabelWriter::default());
        writer.begin(&out);
        for (name, value) in labels {
            writer.push(&mut out, name.as_bytes(), value.as_bytes());
        }
        let span = writer.finish(&mut out);
        assert_eq!(span.len(), out.len());
        out
    }

    fn model(labels: &[(String, String)]) -> BTreeMap<String, String> {
        let mut model = BTreeMap::new();
        for (name, value) in labels.iter().filter(|(name, value)| !name.is_empty() && !value.is_empty()) {
            model.entry(name.clone()).or_insert_with(|| value.clone());
        }
        model
    }

    proptest! {
        /// Whatever order, repeats and lengths labels come in, and whatever is done to them: a label set is a sorted map.
        #[test]
        fn a_label_set_is_a_sorted_map(
            labels in prop::collection::vec(("[a-d]{0,2}", prop_oneof!["[x-z]{0,2}", "[é-ü]{100,150}"]), 0..8),
            edits in prop::collection::vec(("[a-d]{1,2}", prop::option::of("[x-z]{0,200}"), 0usize..6), 0..8),
        ) {
            let source = block(&labels);
            let mut model = model(&labels);
            let mut side = b"another series".to_vec();
            let mut set = LabelSet { index: 0, source: &source, block: Span::new(0, source.len()), side: &mut side, in_side: false, room: Span::default() };
            for (name, value, retained) in edits {
                // At 5 nothing goes.
                let keep = |name: &str, value: &str| (name.len() + value.len()) % 5 != retained;
                set.retain(keep);
                model.retain(|name, value| keep(name, value));
                match value {
                    None => prop_assert_eq!(set.remove(&name), model.remove(&name).is_some()),
                    Some(value) => {
                        set.set(&name, &value);
                        model.remove(&name);
                        if !value.is_empty() {
                            model.insert(name, value);
                        }
                    }
                }
                prop_assert_eq!(set.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<BTreeMap<_, _>>(), model.clone());
                prop_assert!(set.iter().is_sorted());
            }
            prop_assert!(side.starts_with(b"another series"));
        }

        #[test]
        fn first_bytes_compare_as_names_do(
            shared in prop::collection::vec(any::<u8>(), 0..10),
            a in prop::collection::vec(0u8..3, 0..4),
            b in prop::collection::vec(0u8..3, 0..4),
            value in prop::collection::vec(any::<u8>(), 10),
        ) {
            let (a, b) = ([&shared[..], &a].concat(), [&shared[..], &b].concat());
            let first = |name: &[u8]| {
                let mut bytes = Vec::new();
                put_label(&mut bytes, name, &value);
                let short = ShortLabel::at_start_of(&bytes).unwrap();
                assert_eq!((short.first, short.name(&bytes)), (first_of(name), name));
                short.first
            };
            let by_first = first(&a).cmp(&first(&b));
            prop_assert!(by_first.is_eq() || by_first == a.cmp(&b));
            // Equal means that nothing but zeros tells the first eight apart.
            let padded = |name: &[u8]| name.iter().copied().chain([0; 8]).take(8).collect::<Vec<_>>();
            prop_assert_eq!(by_first.is_eq(), padded(&a) == padded(&b));
        }

        /// What is read at once is what is read length by length, whatever stands there.
        #[test]
        fn a_short_label_is_a_label(
            name in prop::collection::vec(any::<u8>(), 0..12),
            value in prop::collection::vec(any::<u8>(), 0..12),
            (at, instead) in (any::<prop::sample::Index>(), any::<u8>()),
            behind in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            let mut bytes = Vec::new();
            put_label(&mut bytes, &name, &value);
            for length in [1, 3] {
                let mut long = bytes.clone();
                long[length] |= 0x80;
                prop_assert!(ShortLabel::at_start_of(&long).is_none());
            }
            let at = at.index(bytes.len() + 1);
            let changed = bytes.get_mut(at).map(|byte| *byte = instead).is_some();
            bytes.extend(behind);
            let short = ShortLabel::at_start_of(&bytes);
            if let Some((value, behind)) = short.and_then(|short| short.value(&bytes)) {
                let label = LabelBlock(&bytes).at(0).unwrap();
                prop_assert_eq!((short.unwrap().name(&bytes), value), (label.name, label.value));
                prop_assert_eq!(behind, &bytes[label.end..]);
            } else {
                prop_assert!(changed || bytes.len() < 12);
            }
        }

        /// Of names that begin the same, too: what is found is what looking at each label finds.
        #[test]
        fn a_label_is_found_where_it_is(
            shared in "[a\0]{0,10}",
            names in prop::collection::vec("[\0-\x02]{0,3}", 0..6),
            values in prop::collection::vec(prop_oneof!["[x-z]{1,20}", "[x-z]{110,130}"], 6),
        ) {
            let names: Vec<_> = names.iter().map(|name| format!("{shared}{name}")).collect();
            let block = block(&names.iter().cloned().zip(values).collect::<Vec<_>>());
            let block = LabelBlock(&block);
            for name in names.iter().flat_map(|name| [name.clone(), format!("{name}\0"), format!("b{name}")]) {
                let by_looking = block
                    .iter()
                    .find(|label| label.name >= name.as_bytes())
                    .map_or(Err(block.0.len()), |label| if label.name == name.as_bytes() { Ok(label) } else { Err(label.start) });
                let seen = |found: Result<LabelAt<'_>, usize>| found.map(|l| (l.name.to_vec(), l.value.to_vec(), l.start, l.end));
                prop_assert_eq!(seen(block.find(name.as_bytes())), seen(by_looking), "{:?}", name);
            }
        }

        /// A block with a name and one label more is what comes of writing them first and then the labels.
        #[test]
        fn a_name_and_a_label_go_into_a_block(
            labels in prop::collection::vec(("[A-Z]|[a-z]{1,2}|__name__|__n|___|le", "[x-z]{1,2}"), 0..6),
            name in prop_oneof!["[a-z]{1,3}", "[a-z]{105,130}"],
            suffix in "(_sum)?",
            le in prop::option::of("[0-9]{1,3}"),
        ) {
            let added = le.as_deref().map(|le| ("le", le));
            let first = [("__name__".to_owned(), format!("{name}{suffix}"))].into_iter();
            let all: Vec<_> =
                first.chain(added.map(|(name, le)| (name.to_owned(), le.to_owned()))).chain(labels.clone()).collect();
            let mut out = b"another series".to_vec();
            let span = put_block(&mut out, LabelBlock(&block(&labels)), (&name, &suffix), added);
            prop_assert_eq!(span.of(&out), block(&all));
            prop_assert!(out.starts_with(b"another series"));
        }
    }
}
