//! `memcube nodes`

use anyhow::Result;
use memcube_schemas::api::v1::NodeCondition;

use super::{
    connect::connect,
    options::{Options, ServerArgs},
    output,
};

pub(crate) fn run(options: &Options, server: &ServerArgs) -> Result<()> {
    let connection = connect(options, server)?;
    let answer = connection.client.nodes()?;
    if options.json {
        return output::json(&answer);
    }
    let rows: Vec<[String; 4]> = answer
        .nodes
        .into_iter()
        .map(|node| {
            let answers = if node.is_me { "yes" } else { "" };
            let address = node.address.unwrap_or_else(|| "-".to_owned());
            [node.id.to_string(), condition(node.condition).to_owned(), address, answers.to_owned()]
        })
        .collect();
    output::table(["node", "condition", "address", "answers here"], &rows)
}

const fn condition(condition: NodeCondition) -> &'static str {
    match condition {
        NodeCondition::Alive => "alive",
        NodeCondition::Dead => "dead",
        NodeCondition::Left => "left",
    }
}
