//! Native histograms: remote write's `prometheus.Histogram` to `io.prometheus.client.Histogram`, the way back of what decoding does.

use infogw_proto::wire::Cursor;

/// An empty `positive_span`: what marks a native histogram that has nothing else to be told from a classic one by.
const EMPTY_SPAN: [u8; 2] = [0x62, 0x00];

/// Whether its `reset_hint` says that it is a gauge's.
pub(super) fn is_gauge(histogram: &[u8]) -> bool {
    fields(histogram).any(|field| field.number == 14 && field.value == [3])
}

/// How long it is once it is [`put`].
pub(super) fn len(histogram: &[u8]) -> usize {
    let known = fields(histogram).filter(|field| field.there().is_some());
    let mark = if is_recognized(histogram) { 0 } else { EMPTY_SPAN.len() };
    known.map(|field| 1 + field.value.len()).sum::<usize>() + mark
}

/// Writes the fields of the `Histogram`: the same values under other numbers. What says that it is a gauge's is the family's type.
pub(super) fn put(histogram: &[u8], out: &mut Vec<u8>) {
    for field in fields(histogram) {
        if let Some(number) = field.there() {
            out.push(number << 3 | field.wire);
            out.extend_from_slice(field.value);
        }
    }
    if !is_recognized(histogram) {
        out.extend_from_slice(&EMPTY_SPAN);
    }
}

/// Whether a scrape takes it for a native one: by a span, or by what there is at zero.
fn is_recognized(histogram: &[u8]) -> bool {
    let (mut zero_threshold, mut zero_count, mut zero_count_float, mut spans) = (false, false, false, false);
    for Field { number, value, .. } in fields(histogram) {
        let is_positive = || value.try_into().is_ok_and(|bits| f64::from_le_bytes(bits) > 0.0);
        match number {
            // Of one that is repeated the last one counts.
            5 => zero_threshold = is_positive(),
            6 => zero_count = value != [0],
            7 => zero_count_float = is_positive(),
            8 | 11 => spans = true,
            _ => {}
        }
    }
    zero_threshold || zero_count || zero_count_float || spans
}

/// A field as it stands there.
struct Field<'h> {
    number: u32,
    wire: u8,
    /// With its length, if it has one.
    value: &'h [u8],
}

impl Field<'_> {
    /// Its number in `io.prometheus.client.Histogram`.
    fn there(&self) -> Option<u8> {
        Some(match self.number {
            1 => 1,
            2 => 4,
            3 => 2,
            4 => 5,
            5 => 6,
            6 => 7,
            7 => 8,
            8 => 9,
            9 => 10,
            10 => 11,
            11 => 12,
            12 => 13,
            13 => 14,
            _ => return None,
        })
    }
}

/// The fields of a histogram, which decoding has checked.
fn fields(histogram: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut cursor = Cursor::new(histogram);
    std::iter::from_fn(move || {
        let wire = histogram.get(cursor.offset())? & 7;
        let field = cursor.field().ok()??;
        let start = cursor.offset();
        cursor.skip(field.wire).ok()?;
        Some(Field { number: field.number, wire, value: histogram.get(start..cursor.offset())? })
    })
}
