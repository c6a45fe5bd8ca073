//! May an event enter the vCPU now? (crate docs: to be written with the crate)
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(not(feature = "kvm"), forbid(unsafe_code))]
extern crate alloc;
