#![no_std]
//! shared
