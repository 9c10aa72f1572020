//! What the fuzz targets check, each in a function of its own that panics on a finding. See `run` beside this crate.

pub mod families;
/// Lies beside the tests that hold the layers against it, too, and has its own.
#[path = "../../../layers/tests/payload/go.rs"]
pub mod go;
pub mod mutate;
pub mod oracle;
mod seeds;
mod targets;

pub use seeds::write_if_asked;
pub use targets::{
    metric_families::metric_families, pipeline::pipeline, selector::selector, text::text, token::token,
    write_request::write_request,
};
