//! What nobody changed goes on as it came; what was changed is what a map of labels would say.

use std::{collections::BTreeMap, convert::Infallible};

use infogw_layers::{
    decode::WriteRequestDecoder,
    encode::Encode,
    payload::{Edited, Keep, LabelSet, MetricFamilies, SeriesSet, WriteRequest},
    translate::Translate,
};
use infogw_proto::prometheus as prom;
use proptest::{collection::vec, option, prelude::*};
use prost::Message;

use crate::{
    block,
    bytes::{message, rests, tidy, wild},
    delimited::{scrape, scraped_families},
    oracle::{canonical, pairs},
    shown, unblock, write_request,
};

proptest! {
    #[test]
    fn what_is_not_changed_goes_on_untouched(parts in tidy()) {
        let message = message(&parts);
        let body = block(&message);
        let mut payload = WriteRequestDecoder::default().decode_block(body.clone()).unwrap();
        shown(&mut payload);
        // Neither of these is a change.
        let nothing = |labels: &mut LabelSet<'_>| -> Result<Keep, Infallible> {
            let (name, value) = labels.iter().next().map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap_or_default();
            labels.set(&name, &value);
            assert!(!labels.remove("absent"));
            Ok(Keep::Yes)
        };
        payload.try_edit(nothing).unwrap();

        let (sent, untouched) = payload.encode().unwrap();
        prop_assert!(untouched);
        prop_assert_eq!((sent.as_ptr(), sent.len()), (body.as_ptr(), body.len()), "the received bytes themselves");
        let (series, others) = rests(&message);
        let (again_series, again_others) = rests(&payload.to_message());
        prop_assert_eq!((series, others), (again_series, again_others));
        prop_assert_eq!(payload.to_message().len(), message.len());
    }

    /// Whatever spelling arrives: what goes on is sorted, without repeats and empties, and is what a policy was shown.
    #[test]
    fn what_goes_on_is_what_the_policy_saw(parts in wild()) {
        let message = message(&parts);
        let arrived = prom::WriteRequest::decode(&*message).unwrap();
        let mut payload = write_request(&message).unwrap();
        let model: Vec<_> = arrived.timeseries.iter().map(|series| canonical(&series.labels)).collect();

        let seen = shown(&mut payload);
        let flat: Vec<Vec<_>> = model.iter().map(|labels| labels.clone().into_iter().collect()).collect();
        prop_assert_eq!(&seen, &flat);
        if payload.received().is_some() {
            let as_sent: Vec<_> = arrived.timeseries.iter().map(|series| pairs(&series.labels)).collect();
            prop_assert_eq!(&as_sent, &flat, "handed on untouched, so it must be canonical");
        }
        let samples: usize = arrived.timeseries.iter().map(|series| series.samples.len() + series.histograms.len()).sum();
        prop_assert_eq!((payload.series(), payload.samples()), (arrived.timeseries.len(), samples as u64));
        agrees(&payload, &message, &model.into_iter().map(Some).collect::<Vec<_>>())?;
    }

    /// Two policies, one behind the other: drop, set, remove.
    #[test]
    fn what_is_changed_is_what_a_map_would_say(parts in wild(), passes in vec(vec(plan(), 1..5), 1..3)) {
        let message = message(&parts);
        let mut payload = write_request(&message).unwrap();
        let arrived = prom::WriteRequest::decode(&*message).unwrap();
        let mut model: Vec<_> = arrived.timeseries.iter().map(|series| Some(canonical(&series.labels))).collect();
        for plans in &passes {
            let edited = payload.try_edit(|labels| -> Result<Keep, Infallible> {
                let plan = &plans[labels.index() % plans.len()];
                for (name, value) in &plan.set {
                    labels.set(name, value);
                }
                for name in &plan.remove {
                    labels.remove(name);
                }
                Ok(if plan.keep { Keep::Yes } else { Keep::No })
            });
            let (mut kept, mut dropped) = (0, 0);
            let alive = model.iter_mut().filter(|series| series.is_some());
            for (series, plan) in alive.zip(plans.iter().cycle()) {
                let labels = series.as_mut().unwrap();
                for (name, value) in &plan.set {
                    labels.insert(name.clone(), value.clone());
                }
                labels.retain(|name, value| !value.is_empty() && !plan.remove.contains(name));
                if plan.keep {
                    kept += 1;
                } else {
                    dropped += 1;
                    *series = None;
                }
            }
            prop_assert_eq!(edited, Ok(Edited { kept, dropped }));
        }
        agrees(&payload, &message, &model)?;
    }

    /// An edit that fails leaves a payload that is whole: what it did so far is done, what it did not see is as it was.
    #[test]
    fn an_edit_that_fails_leaves_the_rest(parts in wild(), plans in vec(plan(), 1..5), at in 0usize..8) {
        let message = message(&parts);
        let mut payload = write_request(&message).unwrap();
        let arrived = prom::WriteRequest::decode(&*message).unwrap();
        let mut model: Vec<_> = arrived.timeseries.iter().map(|series| Some(canonical(&series.labels))).collect();
        let edited = payload.try_edit(|labels| {
            let plan = &plans[labels.index() % plans.len()];
            for name in &plan.remove {
                labels.remove(name);
            }
            match labels.index() == at {
                true => Err("no"),
                false => Ok(if plan.keep { Keep::Yes } else { Keep::No }),
            }
        });
        prop_assert_eq!(edited.is_err(), at < model.len());
        for (index, (series, plan)) in model.iter_mut().zip(plans.iter().cycle()).enumerate().take(at + 1) {
            series.as_mut().unwrap().retain(|name, _| !plan.remove.contains(name));
            if index < at && !plan.keep {
                *series = None;
            }
        }
        agrees(&payload, &message, &model)?;
    }

    /// Metric families, native histograms among them: labels grow and shrink, pass after pass, and any pass may fail on its way.
    #[test]
    fn changed_families_are_what_a_map_would_say(
        all in scraped_families(),
        passes in vec((vec(plan(), 1..5), option::of(0usize..12)), 1..4),
    ) {
        let written = |payload: MetricFamilies| -> Vec<prom::TimeSeries> {
            prom::WriteRequest::decode(&payload.translate(None).to_message()[..]).unwrap().timeseries
        };
        let mut payload = scrape(&all);
        let mut model: Vec<_> = written(scrape(&all)).into_iter().map(|series| (canonical(&series.labels), series)).collect();
        for (plans, fails) in &passes {
            let edited = payload.try_edit(|labels| {
                let plan = &plans[labels.index() % plans.len()];
                for (name, value) in &plan.set {
                    labels.set(name, value);
                }
                for name in &plan.remove {
                    labels.remove(name);
                }
                match Some(labels.index()) == *fails {
                    true => Err("no"),
                    false => Ok(if plan.keep { Keep::Yes } else { Keep::No }),
                }
            });
            prop_assert_eq!(edited.is_err(), fails.is_some_and(|fails| fails < model.len()));
            let mut plans = plans.iter().cycle().enumerate();
            model.retain_mut(|(labels, _)| {
                let (index, plan) = plans.next().unwrap();
                if fails.is_some_and(|fails| index > fails) {
                    return true;
                }
                labels.extend(plan.set.iter().cloned());
                labels.retain(|name, value| !value.is_empty() && !plan.remove.contains(name));
                plan.keep || Some(index) == *fails
            });
            let labels: Vec<Vec<_>> = model.iter().map(|(labels, _)| labels.clone().into_iter().collect()).collect();
            prop_assert_eq!(shown(&mut payload), labels);
        }
        let all_but_labels = |series: prom::TimeSeries| prom::TimeSeries { labels: Vec::new(), ..series }.encode_to_vec();
        let expected: Vec<_> = model.into_iter().map(|(_, series)| all_but_labels(series)).collect();
        prop_assert_eq!(written(payload).into_iter().map(all_but_labels).collect::<Vec<_>>(), expected);
    }
}

/// What is done to one series.
#[derive(Debug, Clone)]
struct Plan {
    set: Vec<(String, String)>,
    remove: Vec<String>,
    keep: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let set = vec(("[a-c_]{1,2}", prop_oneof![4 => "[x-z]{0,2}", 1 => "[x-z]{120,140}"]), 0..3);
    let remove = vec(prop_oneof![4 => "[a-c_]{1,2}", 1 => Just("__name__".to_owned())], 0..8);
    (set, remove, prop::bool::weighted(0.8)).prop_map(|(set, remove, keep)| Plan { set, remove, keep })
}

/// What `payload` encodes to is `arrived` with the labels of `model`, dropped series (`None`) left out, and all else bit for bit.
pub(crate) fn agrees(
    payload: &WriteRequest,
    arrived: &[u8],
    model: &[Option<BTreeMap<String, String>>],
) -> Result<(), TestCaseError> {
    let (sent, untouched) = payload.encode().unwrap();
    let sent = unblock(&sent);
    prop_assert!(!untouched || sent == arrived);
    let decoded = prom::WriteRequest::decode(&*sent).unwrap();
    let labels: Vec<Vec<_>> = model.iter().flatten().map(|labels| labels.clone().into_iter().collect()).collect();
    prop_assert_eq!(decoded.timeseries.iter().map(|series| pairs(&series.labels)).collect::<Vec<_>>(), labels);

    let ((before, others_before), (after, others_after)) = (rests(arrived), rests(&sent));
    let before: Vec<_> = before.into_iter().zip(model).filter_map(|(rest, kept)| kept.as_ref().map(|_| rest)).collect();
    prop_assert_eq!(after, before, "samples, exemplars, histograms and unknown fields");
    prop_assert_eq!(others_after, others_before, "metadata and unknown fields");

    // The same in prost's words: NaN is not equal to itself, its bytes are.
    let mut expected = prom::WriteRequest::decode(arrived).unwrap();
    let mut kept = model.iter();
    expected.timeseries.retain(|_| kept.next().is_some_and(Option::is_some));
    for (series, labels) in expected.timeseries.iter_mut().zip(model.iter().flatten()) {
        let label = |(name, value): (&String, &String)| prom::Label { name: name.clone(), value: value.clone() };
        series.labels = labels.iter().map(label).collect();
    }
    prop_assert_eq!(decoded.encode_to_vec(), expected.encode_to_vec());
    Ok(())
}
