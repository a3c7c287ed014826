"""What the recipes share: settings, data, rewards, traces, and the steps around training."""
