//! Proxy: one request in ten steps.
//!
//! | step | where |
//! |---|---|
//! | 1 accept | [`accept`], [`crate::transport::listen`] |
//! | 2 detect and authenticate | [`accept`], [`crate::transport::detect`], [`crate::transport::tls`] |
//! | 3 begin | [`begin`], [`headers`] |
//! | 4 route | [`route`], [`crate::policy::route`] |
//! | 5 admit | [`admit`], [`guard`] |
//! | 6 pick | [`core`], [`crate::resilience::service`] |
//! | 7 connect | [`upstream`], [`crate::transport::pool`] |
//! | 8 forward | [`forward`], [`upgrade`]; bytes of no protocol of ours: [`opaque`] |
//! | 9 judge | [`judge`], [`retry`], [`deadline`], [`crate::policy::retry`] |
//! | 10 finish | [`record`], [`reply`], [`failure`] |
//!
//! Inbound (the application is behind us) and outbound (it is in front of us) run the same
//! steps with another policy. [`handle`] runs them for one request, [`serve`] for the
//! requests of a connection.

pub mod accept;
pub mod admit;
pub mod begin;
pub mod context;
pub mod core;
pub mod deadline;
pub mod dials;
pub mod failure;
pub mod forward;
pub mod guard;
pub mod handle;
pub mod hash;
pub mod headers;
mod idle;
pub mod judge;
pub mod manners;
pub mod opaque;
pub mod plan;
mod proof;
pub mod record;
pub mod reply;
pub mod retry;
pub mod route;
pub mod serve;
pub mod service;
pub mod spare;
pub mod traces;
pub mod upgrade;
pub mod upstream;
