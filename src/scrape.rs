//! Asking a Prometheus for series: URLs of `/federate`, and what they may be called in a log.

use http::Uri;

/// What a scrape asks for: delimited protobuf before text 0.0.4, as telemeter-client does.
pub const ACCEPT: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
                          text/plain;version=0.0.4;q=0.5";

/// `url` as it may be printed: values in its query may be secrets, but for selectors.
pub fn shown(url: &Uri) -> String {
    let Some(query) = url.query() else { return url.to_string() };
    let hidden = query.split('&').map(|pair| match pair.split_once('=') {
        Some(("match[]" | "match%5B%5D", _)) => pair.to_owned(),
        Some((name, _)) => format!("{name}=***"),
        // It may be a value without a name.
        None if pair.is_empty() => String::new(),
        None => "***".to_owned(),
    });
    let hidden = hidden.collect::<Vec<_>>().join("&");
    let whole = url.to_string();
    let before = whole.split_once('?').map_or(&*whole, |(before, _)| before);
    format!("{before}?{hidden}")
}

/// `url` without what it asks for, which may be long.
pub fn endpoint(url: &Uri) -> String {
    let whole = url.to_string();
    whole.split_once('?').map_or(&*whole, |(before, _)| before).to_owned()
}

/// `url` with `match[]` for each selector.
///
/// # Errors
/// If that is no URL, which happens where it is too long: one has 65,534 bytes at most.
pub fn asking_for<S: AsRef<str>>(url: &Uri, matches: impl IntoIterator<Item = S>) -> Result<Uri, String> {
    let mut query = form_urlencoded::Serializer::new(url.query().unwrap_or_default().to_owned());
    for selector in matches {
        query.append_pair("match[]", selector.as_ref());
    }
    let query = query.finish();
    let path = if query.is_empty() { url.path().to_owned() } else { format!("{}?{query}", url.path()) };
    let mut parts = url.clone().into_parts();
    let len = path.len();
    let wrong = |error: &dyn std::fmt::Display| format!("a URL with all selectors has {len} bytes: {error}");
    parts.path_and_query = Some(path.parse().map_err(|error| wrong(&error))?);
    Uri::from_parts(parts).map_err(|error| wrong(&error))
}
