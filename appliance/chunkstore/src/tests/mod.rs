//! Tests of the whole store on the simulated disk: against a model, through power cuts, and with faults.

mod crash;
mod faults;
mod model;
mod regressions;
mod space;
mod world;
