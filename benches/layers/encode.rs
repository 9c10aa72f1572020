pub(crate) fn benches(_: &mut criterion::Criterion) {}
