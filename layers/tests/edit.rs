//! Edits, through their layer: what they leave of write requests and of metric families.
#![cfg(all(feature = "anonymize", feature = "decode", feature = "edit", feature = "test-util", feature = "translate"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::Request;
use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeLimits, Decoder, MetricFamiliesDecoder, WriteRequestDecoder},
    edit::{Anonymize, DropInvalid, Edit, EditLayer, EmptySalt, Rename, SetLabels},
    payload::{Edited, Keep, LabelSet, MetricFamilies, SeriesSet, WriteRequest},
    translate::Translate,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

/// What `edit` leaves of series written as text, as they would be written, and what its observer is told.
fn edited(edit: impl Edit + 'static, series: &[&str]) -> (Vec<String>, [usize; 2]) {
    let edit = Arc::new(edit);
    let families = families(series);
    // The same of a write request, whose labels lie where they came.
    let message = self::families(series).translate(None).to_message();
    let request = WriteRequestDecoder::new(limits()).decode_message(message).unwrap();
    let (left, told) = pass(Arc::clone(&edit), families);
    assert_eq!(pass(edit, request), (left.clone(), told));
    (left, told)
}

fn pass<P: SeriesSet + 'static>(edit: Arc<impl Edit + 'static>, payload: P) -> (Vec<String>, [usize; 2]) {
    let told = Mutex::new(None);
    let layer = EditLayer::new(edit)
        .observed_by(|edited: &Edited| assert!(told.lock().unwrap().replace([edited.kept, edited.dropped]).is_none()));
    let service = ServiceBuilder::new()
        .layer_fn(|inner| tower::Layer::layer(&layer, inner))
        .service(service_fn(async |request: Request<P>| Ok::<_, Infallible>(request.into_body())));
    let serving = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut payload = serving.block_on(service.oneshot(Request::new(payload))).unwrap();
    let mut left = Vec::new();
    let look = |labels: &mut LabelSet<'_>| -> Result<Keep, Infallible> {
        let own: Vec<_> = labels.iter().filter(|(name, _)| *name != "__name__").collect();
        let own: Vec<_> = own.iter().map(|(name, value)| format!("{name}={value}")).collect();
        left.push(format!("{}{{{}}}", labels.metric_name(), own.join(",")));
        Ok(Keep::Yes)
    };
    payload.try_edit(look).unwrap();
    let told = *told.lock().unwrap();
    (left, told.unwrap())
}

fn limits() -> DecodeLimits {
    DecodeLimits { labels: usize::MAX, ..DecodeLimits::default() }
}

fn families(series: &[&str]) -> MetricFamilies {
    let line = |series: &&str| format!("{series} 1 {}\n", ManualClock::START.as_millis());
    let (head, ()) = Request::new(()).into_parts();
    let decoder = MetricFamiliesDecoder::new(limits()).clock(ManualClock::new());
    decoder.decode(decoder.negotiate(&head).unwrap(), series.iter().map(line).collect::<String>().into()).unwrap()
}

#[test]
fn labels_are_set_and_replaced() {
    let edit = SetLabels::new([("_id", "c1"), ("zone", "z"), ("job", "")]);
    let left = edited(edit, &["up{_id=\"other\",job=\"a\"}", "down", "up{zone=\"z\"}"]);
    let expected = ["up{_id=c1,zone=z}", "down{_id=c1,zone=z}", "up{_id=c1,zone=z}"];
    assert_eq!(left, (expected.map(str::to_owned).to_vec(), [3, 0]));
}

#[test]
fn names_are_renamed_as_a_whole_and_once() {
    let edit = Rename::new([("ALERTS", "alerts"), ("alerts", "again"), ("a", "b")]);
    let left = edited(edit, &["ALERTS{a=\"ALERTS\"}", "alerts", "ALERTS_total", "up"]);
    let expected = ["alerts{a=ALERTS}", "again{}", "ALERTS_total{}", "up{}"];
    assert_eq!(left, (expected.map(str::to_owned).to_vec(), [4, 0]));
}

#[test]
fn what_is_too_long_is_dropped() {
    let (fits, long) = ("x".repeat(255), "x".repeat(256));
    let series = [
        format!("{fits}{{{fits}=\"{fits}\"}}"),
        format!("{long}{{a=\"b\"}}"),
        format!("up{{a=\"{long}\",b=\"c\",{long}=\"d\",z=\"{long}\"}}"),
        format!("up{{a=\"{long}\"}}"),
        "up{a=\"b\"}".to_owned(),
    ];
    let series: Vec<_> = series.iter().map(String::as_str).collect();
    let left = edited(DropInvalid::default(), &series);
    let expected = [format!("{fits}{{{fits}={fits}}}"), "up{b=c}".to_owned(), "up{}".to_owned(), "up{a=b}".to_owned()];
    assert_eq!(left, (expected.to_vec(), [4, 1]));
    // Without a name; and shorter than `__name__` itself.
    let unnamed = |labels: &mut LabelSet<'_>| {
        labels.remove("__name__");
        Keep::Yes
    };
    assert_eq!(edited((unnamed, DropInvalid::new(255)), &["up", "down"]), (Vec::new(), [0, 2]));
    assert_eq!(edited(DropInvalid::new(2), &["up{a=\"b\",c=\"def\"}"]), (vec!["up{a=b}".to_owned()], [1, 0]));
}

#[test]
fn edits_come_in_order_until_one_drops_the_series() {
    fn named(name: &'static str) -> impl Fn(&mut LabelSet<'_>) -> Keep + Clone + Send + Sync + 'static {
        move |labels| if labels.metric_name() == name { Keep::Yes } else { Keep::No }
    }
    let to = |name: &'static str| SetLabels::new([("__name__", name)]);
    let unreachable = |_: &mut LabelSet<'_>| -> Keep { panic!("it is dropped") };
    let kept = |edit: Box<dyn Edit + Send + Sync>| edited(edit, &["a"]).1 == [1, 0];
    assert!(kept(Box::new((to("b"), named("b")))));
    assert!(!kept(Box::new((to("b"), named("a"), unreachable))));
    assert!(kept(Box::new(vec![to("c"), to("b")])));
    assert!(kept(Box::new((vec![to("c"), to("b")], named("b")))));
    assert!(kept(Box::new((None::<SetLabels>, Some(to("b")), named("b")))));
    let boxed: Vec<Box<dyn Edit + Send + Sync>> = vec![Box::new(to("b")), Box::new(named("a")), Box::new(unreachable)];
    assert!(!kept(Box::new(boxed)));
    let shared: Arc<[SetLabels]> = [to("b"), to("d")].into();
    assert!(kept(Box::new((shared, named("d"), (), named("d"), Rename::default(), DropInvalid::default()))));
}

/// Digests of `printf '%s%s' SALT VALUE | sha256sum | cut -c1-18 | xxd -r -p | base64 | tr +/ -_`.
#[test]
fn values_become_their_salted_digests() {
    let anonymize = Anonymize::new("s3cr3t", ["instance", "node", "absent", "__name__"]).unwrap();
    let series = [
        "up{instance=\"10.0.0.7\",job=\"10.0.0.7\",node=\"node-2\"}",
        "up{instance=\"\",node=\"node-9\"}",
        "up{node=\"node-12\"}",
        "instance",
        "up{instance=\"é\\\"x\"}",
        "up{instance=\"10.0.0.7\"}",
    ];
    let expected = [
        "up{instance=6BlC2Ib8sbSq,job=10.0.0.7,node=lAc-bn9C2579}",
        "up{node=L_a7lPLFUYHc}",
        "up{node=K8Szfksfv7-O}",
        "instance{}",
        "up{instance=Nt77TM7WtOXH}",
        "up{instance=6BlC2Ib8sbSq}",
    ];
    assert_eq!(edited(anonymize, &series), (expected.map(str::to_owned).to_vec(), [6, 0]));
    let other = |salt| edited(Anonymize::new(salt, ["host"]).unwrap(), &["up{host=\"api.example.com\"}"]).0;
    assert_eq!(other("s3cr3t"), ["up{host=99Ut_c5dmUb4}"]);
    assert_eq!(other("pepper"), ["up{host=ixsMifUXMHEi}"]);
}

#[test]
fn a_salt_is_needed_and_never_shown() {
    assert_eq!(Anonymize::new("", ["instance"]).unwrap_err(), EmptySalt);
    let shown = format!("{:?}", EditLayer::new(Anonymize::new("s3cr3t", ["instance"]).unwrap()));
    assert!(shown.contains("instance") && !shown.contains("s3cr3t"), "{shown}");
}

/// What nobody changed goes on as it came.
#[test]
fn an_edit_that_changes_nothing_leaves_a_request_untouched() {
    let message = families(&["up{a=\"b\"}"]).translate(None).to_message();
    let block = snap::raw::Encoder::new().compress_vec(&message).unwrap();
    let mut request: WriteRequest = WriteRequestDecoder::default().decode_block(block.into()).unwrap();
    let edits = (SetLabels::new([("a", "b")]), Rename::new([("a", "b")]), DropInvalid::default());
    request.try_edit(|labels| Ok::<_, Infallible>(edits.edit(labels))).unwrap();
    assert!(request.received().is_some());
}
