//! What there is: `list`, `explain`, `conventions`.

use grpo_oracle::convention::Convention;
use grpo_oracle::formula::{Formula, Gradient, Needed, RULES};
use grpo_oracle::{Result, spec};
use serde_json::Value;

pub(crate) fn list() -> String {
    let width = Formula::<f64>::all().map(|formula| formula.id.len()).max().unwrap_or(0);
    Formula::<f64>::all().map(|formula| format!("{:width$}  {}\n", formula.id, formula.summary)).collect()
}

pub(crate) fn explain(id: &str) -> Result<String> {
    let formula = Formula::<f64>::find(id)?;
    let defaults = (formula.defaults)();
    let mut text = format!("{}\n    {}\n    source: {}\n", formula.id, formula.summary, formula.source);
    text.push_str("\ninputs\n");
    for input in formula.inputs {
        let gradient = match input.gradient {
            Gradient::Flows => "; gradient flows",
            Gradient::Stops => "; a constant, its gradient is 0",
            Gradient::None => "",
        };
        let optional = match input.needed {
            Needed::Always => String::new(),
            Needed::UnlessZero(option) => format!("; not read when {option} is 0"),
            Needed::When(option, values) => format!("; read only when {option} is {}", values.join(" or ")),
            Needed::Optional => "; may be left out".to_owned(),
        };
        text.push_str(&format!("    {} {}{gradient}{optional}\n", input.name, input.shape()));
    }
    text.push_str("\noptions\n");
    for option in formula.options {
        let default = defaults.get(option.name).unwrap_or(&Value::Null);
        let (name, values, meaning) = (option.name, option.values, option.meaning);
        text.push_str(&format!("    {name} = {default}  ({values})\n        {meaning}\n"));
    }
    text.push_str("\noutputs\n");
    for output in formula.outputs {
        text.push_str(&format!("    {} [{}]\n", output.name, output.axes.join(", ")));
    }
    text.push_str("\nclauses\n");
    for id in formula.clauses {
        text.push_str(&format!("    r[{id}]\n"));
        let lines = spec::clause(id).unwrap_or_default().lines().filter(|line| !line.is_empty());
        lines.for_each(|line| text.push_str(&format!("        {line}\n")));
    }
    text.push_str(&format!("    and those of every formula: {}\n", RULES.join(", ")));
    text.push_str("\nrivals: what well-known wrong variants do\n");
    for rival in formula.rivals {
        text.push_str(&format!("    {}  {}\n", rival.name, rival.options));
    }
    text.push_str("\nconventions: what differs from the defaults above\n");
    for convention in Convention::all()? {
        if let Some(options) = convention.formulas.get(id) {
            text.push_str(&format!("    {}  {options}\n", convention.name));
        }
    }
    Ok(text)
}

pub(crate) fn conventions(name: Option<&str>) -> Result<String> {
    let Some(name) = name else {
        let all = Convention::all()?;
        let width = all.iter().map(|convention| convention.name.len()).max().unwrap_or(0);
        let line = |convention: &Convention| format!("{:width$}  {}\n", convention.name, convention.title);
        return Ok(all.iter().map(line).collect());
    };
    let convention = Convention::find(name)?;
    let mut text = format!("{}\n    {}\n", convention.name, convention.title);
    for id in convention.formulas.keys() {
        text.push_str(&format!("\n{id}\n"));
        for (option, value) in convention.options(id)? {
            text.push_str(&format!("    {option} = {value}\n"));
        }
    }
    Ok(text)
}
