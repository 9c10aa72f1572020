//! Protobuf messages, changed field by field, so that the lengths around a change stay right: several messages deep, libFuzzer by
//! itself all but never gets there.

use fastrand::Rng;
use infogw_proto::wire::put_varint;

/// Changes an input whose first byte is a mode and whose rest is, for most modes, a message or a stream of messages.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut rng = Rng::with_seed(u64::from(seed));
    let by_libfuzzer = rng.u8(..3) == 0;
    if let (false, Some((mode, message))) = (by_libfuzzer, data.get(..size).and_then(|input| input.split_first())) {
        let stream = read_stream(message);
        let delimited = stream.is_some();
        if let Some(mut fields) = stream.or_else(|| read(message, DEEPEST)) {
            for _ in 0..rng.usize(1..4) {
                change(&mut fields, &mut rng);
            }
            let mut changed = vec![*mode];
            if rng.u8(..8) == 0 {
                changed[0] = rng.u8(..);
            }
            write(&fields, &mut changed, delimited);
            if changed.len() <= max_size {
                data[..changed.len()].copy_from_slice(&changed);
                return changed.len();
            }
        }
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

const DEEPEST: usize = 5;

#[derive(Debug, Clone)]
struct Field {
    tag: u64,
    /// Bytes more than need be: of the tag, and of the length or varint behind it.
    long: (u8, u8),
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Varint(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
    /// The start or end of a group, or what no reader gets past.
    Nothing,
}

/// Messages, each behind its length.
fn read_stream(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (len, extra) = varint(&mut bytes)?;
        let (content, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
        bytes = rest;
        fields.push(Field { tag: 0, long: (0, extra), value: Value::Message(read(content, DEEPEST)?) });
    }
    Some(fields)
}

fn read(mut bytes: &[u8], deeper: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (tag, long_tag) = varint(&mut bytes)?;
        let mut long = 0;
        let value = match tag & 7 {
            0 => {
                let value;
                (value, long) = varint(&mut bytes)?;
                Value::Varint(value)
            }
            wire @ (1 | 5) => {
                let (value, rest) = bytes.split_at_checked(if wire == 1 { 8 } else { 4 })?;
                bytes = rest;
                Value::Fixed(value.to_vec())
            }
            2 => {
                let len;
                (len, long) = varint(&mut bytes)?;
                let (content, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
                bytes = rest;
                match read(content, deeper.saturating_sub(1)).filter(|_| deeper > 0 && content.len() > 1) {
                    Some(fields) => Value::Message(fields),
                    None => Value::Bytes(content.to_vec()),
                }
            }
            _ => Value::Nothing,
        };
        fields.push(Field { tag, long: (long_tag, long), value });
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<(u64, u8)> {
    let len = bytes.iter().take(10).position(|byte| *byte < 0x80)? + 1;
    let (varint, rest) = bytes.split_at(len);
    let value = varint.iter().rev().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    *bytes = rest;
    Some((value, (len - infogw_proto::wire::varint_len(value)) as u8))
}

fn put(out: &mut Vec<u8>, value: u64, long: u8) {
    put_varint(out, value);
    for _ in 0..long {
        if let Some(last) = out.last_mut() {
            *last |= 0x80;
        }
        out.push(0);
    }
}

fn write(fields: &[Field], out: &mut Vec<u8>, tagless: bool) {
    for field in fields {
        if !tagless {
            put(out, field.tag, field.long.0);
        }
        match &field.value {
            Value::Varint(value) => put(out, *value, field.long.1),
            Value::Fixed(bytes) => out.extend_from_slice(bytes),
            Value::Bytes(bytes) => {
                put(out, bytes.len() as u64, field.long.1);
                out.extend_from_slice(bytes);
            }
            Value::Message(fields) => {
                let mut content = Vec::new();
                write(fields, &mut content, false);
                put(out, content.len() as u64, field.long.1);
                out.extend_from_slice(&content);
            }
            Value::Nothing => {}
        }
    }
}

/// More than 128 bytes: the length takes two, and the label is none of those that are read at once.
pub(crate) const LONG: &str = "more than a hundred and twenty-eight bytes, so that its length takes two of them; \
                               and as that is still not enough, here are another fifty";

/// What policies and decoders ask for.
#[rustfmt::skip]
const WORDS: [&[u8]; 24] = [
    b"", b"__name__", b"_id", b"c1", b"c2", b"up", b"down", b"a", b"b", b"bb", b"job", b"env", b"prod", b"replica",
    b"region", b"eu", b"le", b"quantile", b"+Inf", b"\xc3\xa9", b"\xff", b"longer_than_eight", b"longer_than_twelve_bytes",
    LONG.as_bytes(),
];

const NUMBERS: [u64; 10] = [0, 1, 2, 127, 128, 1_767_225_600_000, 1 << 35, u32::MAX as u64, i64::MAX as u64, u64::MAX];

fn change(fields: &mut Vec<Field>, rng: &mut Rng) {
    // Down into one of the messages, more often than not.
    let inside: Vec<usize> = (0..fields.len()).filter(|at| matches!(fields[*at].value, Value::Message(_))).collect();
    if !inside.is_empty()
        && rng.u8(..4) > 0
        && let Value::Message(fields) = &mut fields[inside[rng.usize(..inside.len())]].value
    {
        return change(fields, rng);
    }
    if fields.is_empty() {
        let word = WORDS[rng.usize(..WORDS.len())].to_vec();
        return fields.push(Field { tag: u64::from(rng.u8(1..8)) << 3 | 2, long: (0, 0), value: Value::Bytes(word) });
    }
    let (at, other) = (rng.usize(..fields.len()), rng.usize(..=fields.len()));
    match rng.u8(..13) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(other, fields[at].clone()),
        2 => {
            let moved = fields.remove(at);
            fields.insert(other.min(fields.len()), moved);
        }
        // Field numbers that only some readers see.
        3 => fields[at].tag ^= 1 << rng.u32(35..64),
        4 => fields[at].long.0 = rng.u8(..3),
        5 => fields[at].long.1 = rng.u8(..3),
        6 => fields[at].tag = fields[at].tag & 7 | u64::from(rng.u8(1..18)) << 3,
        7 => fields[at].tag ^= rng.u64(..8),
        8 => {
            let depth = rng.u64(1..6) << 3;
            fields.insert(other, Field { tag: depth | 3, long: (0, 0), value: Value::Nothing });
            let end = rng.usize(other + 1..=fields.len());
            fields.insert(end, Field { tag: depth | 4, long: (0, 0), value: Value::Nothing });
        }
        9 => fields.sort_by(|a, b| spelt(a).cmp(&spelt(b))),
        _ => match &mut fields[at].value {
            Value::Varint(value) => *value = NUMBERS[rng.usize(..NUMBERS.len())],
            Value::Fixed(bytes) => {
                let float = [0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-5, 1e6][rng.usize(..8)];
                bytes.iter_mut().zip(float.to_le_bytes()).for_each(|(byte, new)| *byte = new);
            }
            Value::Bytes(bytes) if rng.bool() => bytes.truncate(rng.usize(..=bytes.len())),
            Value::Bytes(bytes) => *bytes = WORDS[rng.usize(..WORDS.len())].to_vec(),
            Value::Message(inner) => {
                let copy = inner.get(rng.usize(..=inner.len())).cloned();
                inner.extend(copy);
            }
            Value::Nothing => drop(fields.remove(at)),
        },
    }
}

fn spelt(field: &Field) -> Vec<u8> {
    let mut out = Vec::new();
    write(std::slice::from_ref(field), &mut out, false);
    out
}
