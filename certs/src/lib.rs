//! SPIFFE ids, X.509 SVIDs, trust bundles, the authority that issues them and its commands.
//!
//! Code only: keys are made at run time and never live in this repository.

pub mod authority;
pub mod bundle;
pub mod cli;
pub mod csr;
pub mod duration;
mod ecdsa;
pub mod folder;
pub mod inspect;
pub mod jwks;
pub mod pem;
pub mod signed;
pub mod spiffe_id;
pub mod svid;
pub mod x509;
