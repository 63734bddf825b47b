#![doc = include_str!("README.md")]

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod discovery;
pub mod drain;
pub mod endpoint;
pub mod identity;
pub mod intercept;
pub mod policy;
pub mod proxy;
pub mod resilience;
pub mod simulate;
pub mod telemetry;
pub mod transport;
