"""Driving data: poses, frames, nuScenes tables, vector maps and their masks.

poses        quaternions and rigid motions
frames       one moment of a drive before its pictures are decoded, and the sample made from it
tables       nuScenes tables row by row, and their index (`index`, `build`)
vocabulary   classes, ranges, attributes and splits of nuScenes
writer       drives as nuScenes tables
vector_map   drivable areas, crossings, dividers (nuScenes map expansion, Argoverse 2)
raster       polygons and lines as masks
masks        the map classes of a frame
statistics   what a driving set holds
"""
