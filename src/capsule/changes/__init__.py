"""What a run left on the host: overlays listed and applied, new guarded names set aside."""
