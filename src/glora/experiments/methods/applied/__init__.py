"""What each method does to a model, with torch and PEFT; imported when a method is applied, by `Method.apply`."""
