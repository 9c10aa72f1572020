//! What Go's decoders read in a message, to whom a tag is what its low 32 bits say.

use infogw_proto::prometheus::Label;

/// Each series' labels as the code that gogo/protobuf generates reads them; `None` where it refuses.
///
/// It takes the field number from the low 32 bits of a tag, and cuts a varint's tenth byte off.
pub(crate) fn go_labels(message: &[u8]) -> Option<Vec<Vec<Label>>> {
    let mut all = Vec::new();
    for (number, wire, content) in go_fields(message)? {
        if number != 1 {
            continue;
        }
        let mut labels = Vec::new();
        for (number, wire, content) in go_fields(content.filter(|_| wire == 2)?)? {
            if number != 1 {
                continue;
            }
            let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
            for (number, wire, content) in go_fields(content.filter(|_| wire == 2)?)? {
                match number {
                    1 => name = content.filter(|_| wire == 2)?,
                    2 => value = content.filter(|_| wire == 2)?,
                    _ => {}
                }
            }
            // Go's strings are any bytes; ours refuses a label that is not UTF-8.
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            labels.push(Label { name: text(name), value: text(value) });
        }
        all.push(labels);
    }
    Some(all)
}

/// A field's number, its wire type and, if it is length-delimited, its content.
type GoField<'a> = (i32, u8, Option<&'a [u8]>);

fn go_fields(mut rest: &[u8]) -> Option<Vec<GoField<'_>>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let tag;
        (tag, rest) = go_varint(rest)?;
        let (number, wire) = ((tag >> 3) as i32, (tag & 7) as u8);
        let mut content = None;
        if number <= 0 {
            return None;
        }
        rest = match wire {
            0 => go_varint(rest)?.1,
            1 => rest.get(8..)?,
            2 => {
                let (length, behind) = go_varint(rest)?;
                let (inside, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
                content = Some(inside);
                behind
            }
            5 => rest.get(4..)?,
            // Groups are skipped there; ours never lets one through.
            _ => return None,
        };
        fields.push((number, wire, content));
    }
    Some(fields)
}

fn go_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}
