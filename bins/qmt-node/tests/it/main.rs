//! A few nodes on one machine: the wiring, from outside, in one binary.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod agents;
mod audit;
mod boards;
mod ca;
mod channel;
mod children;
mod control;
mod crowd;
mod deaths;
mod doctor;
mod drops;
mod full_disk;
mod gateway;
mod hostile_files;
mod join;
mod lan;
mod leaks;
mod leaving;
mod moves;
mod placing;
mod plans;
mod pulls;
mod registry;
mod restarts;
mod roles;
mod scenarios;
mod sessions;
mod splits;
mod start;
mod strangers;
mod support;
mod tokens;
mod traces;
mod trust;
mod uninvited;
