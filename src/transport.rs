//! Transport: connections, from accept or dial to usable streams.

pub mod body;
pub mod connect;
pub mod detect;
pub mod framing;
pub mod guarded;
pub mod h1;
pub mod h2;
pub mod inherit;
pub mod listen;
pub mod pool;
pub mod replay;
mod splice;
pub mod stream;
pub mod tcp;
pub mod tls;
