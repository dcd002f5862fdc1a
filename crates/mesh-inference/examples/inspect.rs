//! Prints the facts of a GGUF model: `cargo run --release -p mesh-inference --example inspect -- model.gguf`.
//! `--tiny PATH` writes the tests' tiny model instead.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--tiny", path] => Ok(mesh_inference::gguf::tiny::TinyModel::default().write(Path::new(path))?),
        [path] => inspect(Path::new(path)),
        _ => Err("usage: inspect MODEL.gguf | inspect --tiny PATH".into()),
    }
}

fn inspect(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let facts = mesh_inference::gguf::read_metadata(path)?;
    println!("name            {}", facts.name.as_deref().unwrap_or("-"));
    println!("architecture    {} (GGUF {})", facts.architecture, facts.version);
    println!("stored as       {}", facts.quantization());
    println!("parameters      {}", facts.parameters());
    println!(
        "weights         {} bytes in {} tensors, {} file(s)",
        facts.weight_bytes,
        facts.tensors.len(),
        facts.files.len()
    );
    println!("layers          {}", number(facts.block_count));
    println!("context         {}", number(facts.context_length));
    println!("embedding       {}", number(facts.embedding_length));
    println!(
        "heads           {} ({} for keys and values)",
        number(facts.head_count),
        number(facts.head_count_kv)
    );
    if let Some(tokenizer) = &facts.tokenizer {
        println!("tokenizer       {} of {} tokens", tokenizer.model, tokenizer.vocabulary);
        println!("chat template   {}", if tokenizer.chat_template { "yes" } else { "no" });
    }
    if let Some(largest) = facts.tensors.iter().max_by_key(|tensor| tensor.bytes) {
        println!(
            "largest tensor  {} {} {:?} ({} bytes)",
            largest.name, largest.kind, largest.dimensions, largest.bytes
        );
    }
    Ok(())
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}
