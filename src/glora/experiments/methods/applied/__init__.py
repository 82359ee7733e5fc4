"""Each method's changes to a model, with torch and PEFT; imported when a method is applied, by `Method.apply`."""
