//! What a stack is made of, read off its types.
//!
//! Every service here says its name, the request type it takes and the reasons it can refuse with, then asks the service inside
//! it. A stack's table in the docs is checked against this, so it cannot drift from the code.
//!
//! ```
//! # #[cfg(feature = "respond")] {
//! use infogw_layers::describe::{Describe, Row};
//! use infogw_layers::respond::{Respond, RespondLayer};
//!
//! struct Leaf;
//! impl Describe<http::Request<String>> for Leaf {
//!     fn describe(rows: &mut Vec<Row>) {
//!         rows.push(Row::new::<http::Request<String>>("Leaf", &[]));
//!     }
//! }
//! let mut rows = Vec::new();
//! <Respond<Leaf> as Describe<http::Request<String>>>::describe(&mut rows);
//! assert_eq!(rows.iter().map(|row| row.layer).collect::<Vec<_>>(), ["RespondLayer", "Leaf"]);
//! # }
//! ```

use crate::rejection::{LOAD_SHED, Reason};

/// One layer of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The layer's name, or the leaf's: what its refusals are [marked](crate::rejection::Rejection::by) with.
    pub layer: &'static str,
    /// The request it takes, without module paths.
    pub request: String,
    /// Every reason it can refuse with by itself.
    pub reasons: Vec<Reason>,
}

impl Row {
    /// A row for a layer that takes `Req`.
    pub fn new<Req>(layer: &'static str, reasons: &[Reason]) -> Self {
        Row { layer, request: short_name(std::any::type_name::<Req>()), reasons: reasons.to_vec() }
    }
}

/// A layer's name as a value of a metric's label: in snake case, without "Layer".
///
/// ```
/// assert_eq!(infogw_layers::describe::label("RateLimitLayer"), "rate_limit");
/// assert_eq!(infogw_layers::describe::label("Forward"), "forward");
/// ```
pub fn label(layer: &str) -> String {
    let mut label = String::with_capacity(layer.len() + 4);
    for c in layer.strip_suffix("Layer").unwrap_or(layer).chars() {
        if c.is_ascii_uppercase() && !label.is_empty() {
            label.push('_');
        }
        label.push(c.to_ascii_lowercase());
    }
    label
}

/// A service that can say what it is made of.
pub trait Describe<Req> {
    /// Appends this service's row, then those of the services inside.
    fn describe(rows: &mut Vec<Row>);
}

/// `a::b::C<d::E>` to `C<E>`.
fn short_name(name: &str) -> String {
    let mut short = String::with_capacity(name.len());
    for part in name.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_') {
        if part.ends_with(':') {
            continue;
        }
        short.push_str(part);
    }
    short
}

macro_rules! foreign {
    ($($service:ty, $layer:expr, $reasons:expr;)*) => {$(
        impl<S: Describe<Req>, Req> Describe<Req> for $service {
            fn describe(rows: &mut Vec<Row>) {
                rows.push(Row::new::<Req>($layer, $reasons));
                S::describe(rows);
            }
        }
    )*};
}

foreign! {
    tower::load_shed::LoadShed<S>, LOAD_SHED, &[Reason::Overloaded];
    tower::limit::ConcurrencyLimit<S>, "ConcurrencyLimitLayer", &[];
}

/// A layer of two kinds, one of which was chosen at the start: they are the same in what they take and refuse with.
#[cfg(any(feature = "rate-limit", feature = "trace"))]
impl<A: Describe<Req>, B, Req> Describe<Req> for tower::util::Either<A, B> {
    fn describe(rows: &mut Vec<Row>) {
        A::describe(rows);
    }
}

/// Only the errors are others.
#[cfg(any(feature = "authorize", feature = "decode", feature = "rate-limit", feature = "respond"))]
impl<S: Describe<Req>, F, Req> Describe<Req> for tower::util::MapErr<S, F> {
    fn describe(rows: &mut Vec<Row>) {
        S::describe(rows);
    }
}

/// Looks at requests, or changes what is no part of their type.
#[cfg(any(feature = "authorize", feature = "decode", feature = "rate-limit", feature = "respond", feature = "trace"))]
impl<S: Describe<Req>, F, Req> Describe<Req> for tower::util::MapRequest<S, F> {
    fn describe(rows: &mut Vec<Row>) {
        S::describe(rows);
    }
}

/// A predicate for tower's `FilterLayer` that says what it refuses.
pub trait DescribePredicate {
    /// The reasons it refuses with.
    const REASONS: &'static [Reason];
    /// What it is called, and marks its refusals with.
    const NAME: &'static str;
}

impl<S: Describe<Req>, P: DescribePredicate, Req> Describe<Req> for tower::filter::Filter<S, P> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Req>(P::NAME, P::REASONS));
        S::describe(rows);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_lose_their_paths() {
        let name = std::any::type_name::<Result<std::io::Error, Vec<std::time::Duration>>>();
        assert_eq!(super::short_name(name), "Result<Error, Vec<Duration>>");
    }
}
