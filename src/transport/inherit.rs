//! Inherit: a listening socket from the process before.
//!
//! The one file with `unsafe`: a descriptor arrives as a number, and nothing but a promise
//! makes it an owned one.
#![expect(unsafe_code, reason = "a received descriptor is a number until somebody owns it")]

use std::{
    net::TcpListener,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// Takes ownership of a listening socket that another process sent.
///
/// To be called once for each descriptor received, and never for one that something else in
/// this process owns: whoever drops the listener closes the number.
pub fn listener(received: RawFd) -> TcpListener {
    // SAFETY: the number was received over a Unix socket (SCM_RIGHTS), which makes a new
    // descriptor of this process, and is handed to exactly one caller.
    let owned = unsafe { OwnedFd::from_raw_fd(received) };
    owned.into()
}
