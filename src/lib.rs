//! infogw-proxy
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod admin;
pub mod client;
pub mod config;
pub mod dev;
pub mod forward;
pub mod gateway;
pub mod log;
pub mod registration;
pub mod route;
pub mod server;
pub mod stack;
