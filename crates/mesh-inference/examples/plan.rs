//! Prints where a model would run: `cargo run --release -p mesh-inference --example plan -- MODEL.gguf MB [MB of a worker]...`
//!
//! `SPEED=25` is how many GB of weights a machine reads each second, `SPLIT=1` asks for a split over all of the workers.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use mesh_identity::NodeKey;
use mesh_inference::gguf::read_metadata;
use mesh_inference::plan::{Context, Link, Machine, Needs, Speed, Wishes, plan};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, memory @ ..] = arguments.as_slice() else {
        return Err("usage: plan MODEL.gguf MB [MB of a worker]...".into());
    };
    let context = Context::new(NonZeroU32::new(4096).ok_or("no tokens")?, NonZeroU32::MIN);
    let needs = Needs::of(&read_metadata(model.as_ref())?, &context)?;
    let speed = std::env::var("SPEED").ok().map_or(Ok(20.0), |speed| speed.parse::<f64>())? * 1e9;
    let machine = |number: u8, megabytes: u64| Machine {
        id: NodeKey::from_seed([number; 32]).node_id(),
        name: if number == 0 { "here".into() } else { format!("worker{number}") },
        memory: megabytes.saturating_mul(1_000_000),
        gpus: Vec::new(),
        speed: Speed { bytes_per_second: speed, ..Speed::UNKNOWN },
        link: if number == 0 { Link::HERE } else { Link::new(Duration::from_micros(50)) },
        build: "one".into(),
        has_file: number == 0,
        serves: number == 0,
        lends: true,
    };
    let memory: Vec<u64> = memory.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [here, workers @ ..] = memory.as_slice() else { return Err("how much memory is here?".into()) };
    let workers: Vec<Machine> = (1..).zip(workers).map(|(number, memory)| machine(number, *memory)).collect();
    let split = std::env::var_os("SPLIT").is_some();
    let wishes =
        Wishes { split, workers: NonZeroUsize::new(workers.len()).filter(|_| split), ..Wishes::default() };
    print!("{}", plan(model, &needs, &machine(0, *here), &workers, &wishes));
    Ok(())
}
