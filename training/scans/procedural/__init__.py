"""What procedural rooms are made of: solids, textures, furniture, layout, camera path, sensor."""
