use std::fmt::Write as _;

use bytes::Bytes;
use infogw_layers::{payload::SeriesSet, translate::Translate};

use super::{OLDEST, limits, metric_families::decode};
use crate::{go, oracle};

const TEXT: &str = "text/plain; version=0.0.4";

/// Text 0.0.4. The first byte says which limits hold.
pub fn text(data: &[u8]) {
    let Some((mode, input)) = data.split_first() else { return };
    let tight = mode & 2 != 0;
    // Packing takes longer than all the rest.
    let framed = (mode & 4 != 0).then(|| decode(tight, TEXT, "snappy", oracle::framed(input)));
    let mut payload = match decode(tight, TEXT, "", Bytes::copy_from_slice(input)) {
        Err(error) => {
            assert!(framed.is_none_or(|framed| framed.is_err()));
            oracle::assert_one_line(error);
            return;
        }
        Ok(payload) => payload,
    };
    let shown = oracle::shown(&mut payload);
    let series = payload.series();
    let sent = payload.translate(None).to_message();
    if let Some(framed) = framed {
        assert_eq!(framed.expect("it is the same text").translate(None).to_message(), sent);
    }

    let by_go = go::unmarshal(&sent).expect("Go reads what goes on");
    oracle::assert_reads_as(&sent, &by_go);
    assert_eq!(by_go.timeseries.len(), series);
    assert_eq!(by_go.timeseries.iter().map(|it| pairs(&it.labels)).collect::<Vec<_>>(), shown);
    // A line has one sample, at the least of "a 0 0\n".
    assert!(series <= limits(tight).series && series <= input.len() / 6);
    for series in &by_go.timeseries {
        let [sample] = &series.samples[..] else { panic!("{series:?}") };
        assert!(sample.timestamp >= OLDEST);
        assert!(series.labels.iter().any(|label| label.name == b"__name__"));
        for label in &series.labels {
            let text = str::from_utf8(&label.value).expect("labels are UTF-8");
            // A value stands there as it is, unless it was escaped.
            assert!(text.contains(['"', '\\', '\n']) || str::from_utf8(input).is_ok_and(|input| input.contains(text)));
        }
    }

    // Written anew, it is the same.
    let anew = written(&by_go);
    let Ok(again) = decode(tight, TEXT, "", anew.clone().into()) else {
        let longer = anew.len() > limits(tight).decoded.min(limits(tight).body);
        assert!(longer || !ascends(&by_go), "{anew}");
        return;
    };
    assert_eq!(again.translate(None).to_message(), sent, "{anew}");
}

fn pairs(labels: &[go::Label]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("labels are UTF-8");
    labels.iter().map(|label| (text(&label.name), text(&label.value))).collect()
}

/// Whether samples of one name that follow one another ascend: written without types, families are other ones.
fn ascends(request: &go::WriteRequest) -> bool {
    let name =
        |series: &go::TimeSeries| series.labels.iter().find(|it| it.name == b"__name__").map(|it| it.value.clone());
    request
        .timeseries
        .windows(2)
        .all(|two| name(&two[0]) != name(&two[1]) || two[0].samples[0].timestamp <= two[1].samples[0].timestamp)
}

fn written(request: &go::WriteRequest) -> String {
    let mut text = String::new();
    for series in &request.timeseries {
        let labels = pairs(&series.labels);
        let name = labels.iter().find(|(name, _)| name == "__name__").map_or("", |(_, value)| value);
        let value = f64::from_bits(series.samples[0].value);
        let _ = write!(text, "{name}{{");
        for (name, value) in labels.iter().filter(|(name, _)| name != "__name__") {
            let value = value.replace('\\', r"\\").replace('\n', r"\n").replace('"', r#"\""#);
            let _ = write!(text, "{name}=\"{value}\",");
        }
        let value = if value.is_infinite() { format!("{value:+}") } else { format!("{value:?}") };
        let _ = writeln!(text, "}} {value} {}", series.samples[0].timestamp);
    }
    text
}
