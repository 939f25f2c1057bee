//! The layers of `src/`: who may import whom. The table is the same as the picture in ARCHITECTURE.md.
//!
//! Every path of the source that begins with `crate`, `super` or `self` is read, in `use` and in code. Unit tests are
//! left out: they may use the engine as a whole.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Item, UseTree};

/// The layers, from the bottom to the top, and which of those below each may import. ARCHITECTURE.md has the same table.
const LAYERS: &[(&str, &str)] = &[
    ("limits", ""),
    ("model", "limits"),
    ("error", "model, limits"),
    ("proto", "limits"),
    ("engine/state", "base"),
    ("engine/values", "base"),
    ("engine/storage", "engine/values, engine/state, base"),
    ("engine/kernels", "engine/values, base"),
    ("engine/runtime", "engine/kernels, engine/storage, engine/state, base"),
    ("engine/numstore", "engine/runtime, engine/state, base"),
    ("engine/csv", "engine/kernels, engine/storage, engine/values, base"),
    ("engine/parquet", "engine/csv, engine/kernels, engine/storage, engine/values, base"),
    ("engine/parts", "engine/parquet, shared, base"),
    ("engine/query", "engine/parts, formats, shared, base"),
    ("engine/group_by", "engine/query, engine/parts, formats, shared, base"),
    ("engine/survey", "engine/query, engine/parts, formats, shared, base"),
    ("engine/ingest", "engine/kernels, formats, shared, base"),
    ("engine/pack", "engine/ingest, engine/parts, formats, shared, base"),
    ("engine/jobs", "engine/ingest, engine/survey, engine/group_by, shared, base"),
    ("engine/scrub", "engine/jobs, engine/parquet, shared, base"),
    ("engine/part_reader", "engine/survey, engine/group_by, engine/query, shared, base"),
    ("engine/readiness", "shared, base"),
    ("engine/stats", "shared, base"),
    ("engine/start", "engine/scrub, engine/jobs, engine/pack, engine/ingest, engine/parts, shared, base"),
    ("engine", "engine/start, engine/stats, engine/readiness, engine/numstore, features, shared, base"),
    ("access", "base"),
    ("config", "access, engine, base"),
    ("api", "access, config, engine, features, engine/runtime, engine/state, proto, base"),
    ("server", "access, api, config, engine, engine/runtime, engine/state, proto, base"),
    ("cli", "access, server, config, engine, engine/group_by, engine/scrub, proto, base"),
    ("main", "cli, config, server"),
];

/// Names for several layers.
const GROUPS: &[(&str, &[&str])] = &[
    ("base", &["error", "model", "limits"]),
    ("shared", &["engine/runtime", "engine/storage", "engine/values", "engine/state"]),
    ("formats", &["engine/parquet", "engine/csv"]),
    (
        "features",
        &[
            "engine/scrub",
            "engine/jobs",
            "engine/ingest",
            "engine/pack",
            "engine/survey",
            "engine/query",
            "engine/group_by",
            "engine/parts",
        ],
    ),
];

/// The layers that a list of layers and groups names.
fn layers_in(list: &str) -> BTreeSet<&str> {
    let group = |name| GROUPS.iter().find(|(group, _)| *group == name).map(|(_, layers)| layers.to_vec());
    let names = list.split(", ").filter(|name| !name.is_empty());
    names.flat_map(|name| group(name).unwrap_or_else(|| vec![name])).collect()
}

/// A module's path below the crate: `["engine", "csv", "scanner"]`.
type Module = Vec<String>;

/// All modules with a file, and the paths that each names.
fn modules() -> BTreeMap<Module, BTreeSet<Vec<String>>> {
    fn collect(folder: &Path, module: &Module, modules: &mut BTreeMap<Module, BTreeSet<Vec<String>>>) {
        for entry in fs::read_dir(folder).expect("src/ can be read") {
            let path = entry.expect("an entry").path();
            let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let mut inner = module.clone();
            if path.is_dir() {
                inner.push(stem);
                collect(&path, &inner, modules);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !stem.ends_with("tests") {
                if stem != "mod" && stem != "lib" {
                    inner.push(stem);
                }
                let file = syn::parse_file(&fs::read_to_string(&path).expect("readable")).expect("Rust");
                let mut paths = BTreeSet::new();
                file.items.iter().for_each(|item| item_paths(item, &inner, &mut paths));
                modules.insert(inner, paths);
            }
        }
    }
    let mut all = BTreeMap::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Vec::new(), &mut all);
    assert!(all.len() > 100, "src/ has {} modules only", all.len());
    all
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    use quote::ToTokens as _;
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        text.contains("cfg") && text.contains("test") && !text.contains("not (test)")
    })
}

fn item_paths(item: &Item, module: &Module, paths: &mut BTreeSet<Vec<String>>) {
    use quote::ToTokens as _;
    let attributes = match item {
        Item::Use(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        _ => &Vec::new(),
    };
    if is_for_tests(attributes) {
        return;
    }
    match item {
        Item::Use(item) => use_paths(&item.tree, &mut Vec::new(), module, paths),
        Item::Mod(item) => {
            // An inline module belongs to the file that it is in.
            let mut inner = module.clone();
            inner.push(item.ident.to_string());
            item.content.iter().flat_map(|(_, items)| items).for_each(|item| item_paths(item, &inner, paths));
        }
        item => token_paths(item.to_token_stream(), module, paths),
    }
}

fn use_paths(tree: &UseTree, before: &mut Vec<String>, module: &Module, paths: &mut BTreeSet<Vec<String>>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            use_paths(&path.tree, before, module, paths);
            before.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| use_paths(tree, before, module, paths)),
        UseTree::Name(name) => {
            let mut path = before.clone();
            path.push(name.ident.to_string());
            paths.extend(absolute(&path, module));
        }
        UseTree::Rename(name) => {
            let mut path = before.clone();
            path.push(name.ident.to_string());
            paths.extend(absolute(&path, module));
        }
        UseTree::Glob(_) => paths.extend(absolute(before, module)),
    }
}

/// Paths in code, in macros too.
fn token_paths(tokens: TokenStream, module: &Module, paths: &mut BTreeSet<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if path.is_empty() || colons == 2 => {
                path.push(ident.to_string());
                colons = 0;
                continue;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() && colons < 2 => {
                colons += 1;
                continue;
            }
            TokenTree::Group(ref group) => {
                let stream = group.stream();
                // `pub(in crate::cli)` is no import.
                let is_scope =
                    matches!(stream.clone().into_iter().next(), Some(TokenTree::Ident(first)) if first == "in");
                if !is_scope {
                    token_paths(stream, module, paths);
                }
            }
            _ => {}
        }
        add_code_path(&path, module, paths);
        (path, colons) = (Vec::new(), 0);
        if let TokenTree::Ident(ident) = token {
            path.push(ident.to_string());
        }
    }
    add_code_path(&path, module, paths);
}

/// The `super` of `pub(super)` is no import.
fn add_code_path(path: &[String], module: &Module, paths: &mut BTreeSet<Vec<String>>) {
    if path.last().is_some_and(|name| name != "super") {
        paths.extend(absolute(path, module));
    }
}

/// A path that begins with `crate`, `super` or `self`, from the crate on.
fn absolute(path: &[String], module: &Module) -> Option<Vec<String>> {
    let mut base = module.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (base, rest) = (Vec::new(), &path[1..]),
        "self" if path.len() > 1 => rest = &path[1..],
        "super" => {}
        _ => return None,
    }
    while rest.first().is_some_and(|name| name == "super") {
        base.pop();
        rest = &rest[1..];
    }
    base.extend(rest.iter().filter(|name| *name != "self").cloned());
    Some(base)
}

/// Which modules import which: a path belongs to the module with the longest name that it begins with.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let modules = modules();
    let module_of = |path: &Vec<String>| {
        (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(|module| modules.contains_key(module))
    };
    let mut imports = BTreeMap::new();
    for (module, paths) in &modules {
        let of: BTreeSet<_> = paths.iter().filter_map(module_of).filter(|other| other != module).collect();
        imports.insert(module.clone(), of);
    }
    imports
}

/// The layer that a module is in: the one with the longest name. And what that layer may import.
fn layer_of(module: &Module) -> Option<&'static (&'static str, &'static str)> {
    let is_in = |layer: &str| layer.split('/').eq(module.iter().map(String::as_str).take(layer.split('/').count()));
    LAYERS.iter().filter(|(layer, _)| is_in(layer)).max_by_key(|(layer, _)| layer.len())
}

#[test]
fn imports_run_downward() {
    let mut wrong = Vec::new();
    for (module, others) in imports() {
        // lib.rs declares the modules, and a `mod.rs` its children.
        let Some((layer, below)) = layer_of(&module) else {
            assert!(module.is_empty(), "{} is in no layer", module.join("::"));
            continue;
        };
        let below = layers_in(below);
        for other in others {
            let Some((other_layer, _)) = layer_of(&other) else { continue };
            if layer != other_layer && !below.contains(other_layer) {
                wrong.push(format!("{} ({layer}) imports {} ({other_layer})", module.join("::"), other.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} imports that the layers do not allow:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_modules_import_each_other() {
    // Modules that import nothing that is left are taken away until none is left, or only cycles and what leads to them.
    let mut left = imports();
    loop {
        let done: Vec<_> = left
            .iter()
            .filter(|(_, of)| of.iter().all(|other| !left.contains_key(other)))
            .map(|(m, _)| m.clone())
            .collect();
        if done.is_empty() {
            break;
        }
        done.iter().for_each(|module| drop(left.remove(module)));
    }
    // And what leads to them.
    loop {
        let used: BTreeSet<_> = left.values().flatten().cloned().collect();
        let before = left.len();
        left.retain(|module, _| used.contains(module));
        if left.len() == before {
            break;
        }
    }
    let lines: Vec<_> = left
        .iter()
        .map(|(module, of)| {
            let of: Vec<_> =
                of.iter().filter(|other| left.contains_key(*other)).map(|other| other.join("::")).collect();
            format!("{} -> {}", module.join("::"), of.join(", "))
        })
        .collect();
    assert!(lines.is_empty(), "modules that import each other:\n{}", lines.join("\n"));
}

#[test]
fn layers_may_import_only_layers_below_them() {
    let mut below = BTreeSet::new();
    for (layer, list) in LAYERS {
        for other in layers_in(list) {
            assert!(below.contains(other), "{layer} may import {other}, which is not below it");
        }
        below.insert(*layer);
    }
}

#[test]
fn architecture_has_the_same_table() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).expect("readable");
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| line.replace('`', ""));
    let rows: Vec<(String, String)> = rows
        .filter_map(|row| match row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>()[..] {
            [layer, _, below] => Some((layer.to_owned(), below.to_owned())),
            _ => None,
        })
        .collect();
    let expected: Vec<_> =
        LAYERS.iter().rev().map(|(layer, below)| ((*layer).to_owned(), (*below).to_owned())).collect();
    assert_eq!(rows, expected);
    for (group, layers) in GROUPS {
        let names: Vec<_> = layers.iter().map(|layer| format!("`{layer}`")).collect();
        let line = format!("**{group}**: {}", names.join(", "));
        assert!(text.contains(&line), "ARCHITECTURE.md does not say {line}");
    }
}
